"A study and single jobs on a Ray cluster of three local nodes, one of which is killed while it works"
import os, threading, time
from pathlib import Path
import psutil, pytest
from kd_leaf.data.store import image_store
from kd_leaf.study import runner
from kd_leaf.study.config import Study
from kd_leaf.study.engine import Job, run_jobs
from kd_leaf.study.executors import make_executor
from test_engines import TINY, hashes

ray = pytest.importorskip('ray', reason="Ray is not installed: pip install 'kd_leaf[cluster]'")


@pytest.fixture(scope='module')
def cluster():
    "A head without CPUs of its own, and three nodes of one CPU"
    from ray.cluster_utils import Cluster
    here = str(Path(__file__).parent)  # where the workers find this file
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PYTHONPATH', here, prepend=os.pathsep)
        c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, object_store_memory=80*2**20))
        nodes = [c.add_node(num_cpus=1, object_store_memory=80*2**20) for _ in range(3)]
        yield c, nodes
        ray.shutdown()
        c.shutdown()


def is_busy(node):
    "Does a worker of this node run a task? Ray names the process after it"
    raylet = psutil.Process(node.all_processes['raylet'][0].process.pid)
    return any(''.join(p.cmdline()).startswith('ray::_call') for p in raylet.children())


def kill_in_a_student(c, nodes, folder, killed):
    "Once all teachers are on record whoever works is in a student: SIGKILL such a node"
    while sum(r[-1] for r in roles(folder)) < 2: time.sleep(.05)
    while not (busy := [n for n in nodes if is_busy(n)]): time.sleep(.05)
    killed.append((len(roles(folder)), busy[0]))
    c.remove_node(busy[0], allow_graceful=False)


def roles(folder): return [(f.stem, '"role": "teacher"' in f.read_text()) for f in (folder/'tiny/runs').glob('*.json')]


def test_a_study_survives_a_killed_node(cluster, tmp_path, monkeypatch):
    "Every record, and each the same as without a cluster"
    c, nodes = cluster
    tiny, folder = TINY | dict(student=TINY['student'] | dict(epochs=6)), tmp_path/'whole'
    monkeypatch.setattr(Study, 'dir', property(lambda self: folder/self.name))
    runner.run_study(Study('tiny', **tiny), device='cpu')
    whole, folder, killed = hashes(folder), tmp_path/'broken', []
    killer = threading.Thread(target=kill_in_a_student, args=(c, nodes, folder, killed), daemon=True)
    killer.start()
    runner.run_study(Study('tiny', **tiny), device='cpu', engine='ray', address=c.address)
    killer.join(10)
    assert killed and killed[0][0] < 6  # while there was something to do
    nodes.remove(killed[0][1])
    assert len(whole) == 6 and hashes(folder) == whole  # no *.error.json either


def test_a_node_without_the_images_is_named_before_training(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(Study, 'dir', property(lambda self: tmp_path/self.name))
    store = image_store('synthetic-leaves', TINY['size'])
    store.path = tmp_path/'on the driver alone'
    with pytest.raises(FileNotFoundError, match="has no images: .*KD_LEAF_SHARE") as e:
        runner.run_study(Study('tiny', **TINY), store, device='cpu', engine='ray', address=cluster[0].address)
    assert '\n' not in str(e.value) and not [*tmp_path.glob('tiny/runs/*')]


def fail(tick): raise ValueError('lr=1e30')


def test_an_error_on_a_node_is_one_line(cluster):
    failed = run_jobs(fail, [Job('one')], make_executor('ray', address=cluster[0].address))['one']
    assert (failed.error, failed.tries) == ('ValueError: lr=1e30', 1)


def wait_long(k, folder, tick):
    "Nothing for the first job, minutes in small steps for the second"
    (Path(folder)/f'{k}.began').touch()
    for _ in range(2000*k): time.sleep(.1)
    (Path(folder)/f'{k}.ended').touch()


def test_what_runs_is_stopped_with_the_study(cluster, tmp_path):
    "After Ctrl-C no task goes on, beside which the next start would train the same run"
    def interrupt(job, result):
        while not (tmp_path/'1.began').exists(): time.sleep(.05)
        raise KeyboardInterrupt
    jobs = [Job(str(k), (k, str(tmp_path))) for k in range(2)]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(wait_long, jobs, make_executor('ray', address=cluster[0].address), interrupt)
    for _ in range(6000):  # a busy machine is no fault
        if not any(map(is_busy, cluster[1])): break
        time.sleep(.05)
    assert not any(map(is_busy, cluster[1])) and not (tmp_path/'1.ended').exists()


def work(k, folder, tick):
    "Leave a line for each try, and take long enough to be killed"
    with open(Path(folder)/f'{k}.tries', 'a') as f: f.write(f'{ray.get_runtime_context().get_node_id()}\n')
    time.sleep(1+k)  # so that no two end together
    return k*k


def test_a_killed_node_is_survived(cluster, tmp_path):
    c, nodes = cluster
    jobs = [Job(str(k), (k, str(tmp_path))) for k in range(6)]
    executor, made, killed = make_executor('ray', address=c.address), [], []

    def on_done(job, result):
        "When the first job is done, kill a node that is at work on another"
        made.append(job.key)
        if killed: return
        while not (busy := [f for f in tmp_path.glob('*.tries') if f.stem not in made]): time.sleep(.05)
        last = max(busy, key=lambda f: f.stat().st_mtime)  # it has the longest to go
        node = next(n for n in nodes if n.node_id == last.read_text().split()[0])
        c.remove_node(node, allow_graceful=False)
        nodes.remove(node)
        killed.append(last.stem)

    results = run_jobs(work, jobs, executor, on_done, retries=2)
    assert results == {str(k): k*k for k in range(6)}
    assert sorted(made) == sorted(results)  # each handed on once
    tries = (tmp_path/f'{killed[0]}.tries').read_text().split()
    assert len(tries) == 2 and tries[0] != tries[1]  # done again, on another node


def test_unreachable_address():
    with pytest.raises(ConnectionError, match='no Ray cluster at'):
        ray.shutdown()
        make_executor('ray', address='127.0.0.1:1')


def test_without_an_address_a_cluster_of_ones_own(monkeypatch):
    "Not the one that somebody else has started on this machine, which Ray would join; RAY_ADDRESS names one that is meant"
    asked = []
    def init(address, **kw):
        asked.append(address)
        raise ValueError('no')
    monkeypatch.setattr(ray, 'init', init)
    for name in ('', '127.0.0.1:6379'):
        if name: monkeypatch.setenv('RAY_ADDRESS', name)
        with pytest.raises(ConnectionError, match='no Ray cluster at'): make_executor('ray')
    assert asked == ['local', None]
