"Jobs on a Ray cluster of three local nodes, one of which is killed while it works"
import os, time
from pathlib import Path
import pytest
from kd_leaf.study.engine import Job, run_jobs
from kd_leaf.study.executors import make_executor

ray = pytest.importorskip('ray', reason="Ray is not installed: pip install 'kd_leaf[cluster]'")


@pytest.fixture(scope='module')
def cluster():
    "A head without CPUs of its own, and three nodes of one CPU"
    from ray.cluster_utils import Cluster
    here = str(Path(__file__).parent)  # where the workers find this file
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (here, os.environ.get('PYTHONPATH'))))
    c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, object_store_memory=80*2**20))
    nodes = [c.add_node(num_cpus=1, object_store_memory=80*2**20) for _ in range(3)]
    yield c, nodes
    ray.shutdown()
    c.shutdown()


def work(k, folder, tick):
    "Leave a line for each try, and take long enough to be killed"
    with open(Path(folder)/f'{k}.tries', 'a') as f: f.write(f'{ray.get_runtime_context().get_node_id()}\n')
    time.sleep(2)
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
        node = next(n for n in nodes if n.node_id == busy[0].read_text().split()[0])
        c.remove_node(node, allow_graceful=False)
        killed.append(busy[0].stem)

    results = run_jobs(work, jobs, executor, on_done, retries=2)
    assert results == {str(k): k*k for k in range(6)}
    assert sorted(made) == sorted(results)  # each handed on once
    tries = (tmp_path/f'{killed[0]}.tries').read_text().split()
    assert len(tries) == 2 and tries[0] != tries[1]  # done again, on another node


def test_unreachable_address():
    with pytest.raises(ConnectionError, match='no Ray cluster at'):
        ray.shutdown()
        make_executor('ray', address='127.0.0.1:1')
