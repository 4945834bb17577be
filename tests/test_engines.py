"One study by several engines and several drivers: the same records, each made once"
import json, os, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path
import pytest, torch
from kd_leaf.study import runner
from kd_leaf.study.config import Study
from kd_leaf.study.executors import ProcessExecutor

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(title='tiny', profile='quick', dataset='synthetic-leaves', size=16, seeds=[0, 1],
            grid=dict(teachers=['cnn4'], students=['cnn4'], balance=['none']),
            teacher=dict(epochs=1, mode='fp32'), student=dict(epochs=1, fraction=.5, views=1, mode='fp32'),
            kd=dict(loss='soft_target', temperature=4., alpha=.5))  # for each seed a teacher, and a student with and without it
DRIVER = f'''
import os, sys, time
from kd_leaf.study import runner
from kd_leaf.study.config import Study
fit = runner.fit_run
def noted(run, *args):
    with open('made.log', 'a') as f: f.write(run.key+'\\n')
    if sys.argv[1]=='hang': time.sleep(600)
    return fit(run, *args)
runner.fit_run = noted
runner.run_study(Study('tiny', **{TINY!r}), device='cpu')
'''


def records(folder): return {f.stem: json.loads(f.read_text()) for f in (folder/'tiny/runs').glob('*.json')}
def hashes(folder): return {k: (r['preds_sha256'], r['weights_sha256'], r['f1'], r['history']) for k, r in records(folder).items()}


@pytest.fixture
def study_in(tmp_path, monkeypatch):
    "A function that does the study in a folder and a cache of its own; returns hashes and scores by key"
    def do(name, **kw):
        monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/name/'cache'))
        monkeypatch.setattr(Study, 'dir', property(lambda self: tmp_path/name/self.name))
        runner.run_study(Study('tiny', **TINY), device='cpu', **kw)
        return hashes(tmp_path/name)
    return do


def test_the_same_bits_by_any_engine_and_number_of_workers(study_in):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        one = study_in('serial')
        assert torch.get_num_threads() == 2  # as it was found
    finally: torch.set_num_threads(threads)
    assert len(one) == 6
    assert one == study_in('two', engine='processes', workers=2) == study_in('three', engine='processes', workers=3)


def driver(folder, how='go'):
    env = os.environ | dict(PYTHONPATH=str(ROOT), KD_LEAF_CACHE=str(folder/'cache'), OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-c', DRIVER, how], cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


def made(folder): return Counter((folder/'made.log').read_text().split()) if (folder/'made.log').exists() else Counter()


def wait_for(what, seconds=200):
    deadline = time.time()+seconds
    while not what():
        assert time.time() < deadline
        time.sleep(.1)


def test_two_drivers_make_each_run_once(tmp_path):
    drivers = [driver(tmp_path) for _ in range(2)]
    for p in drivers:
        said = p.communicate(timeout=300)[1]
        assert p.returncode == 0, said
    assert set(made(tmp_path).values()) == {1}
    assert made(tmp_path).keys() == records(tmp_path/'results_quick').keys() and len(made(tmp_path)) == 6


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='Windows has no SIGKILL')
def test_a_killed_driver_leaves_no_lock_behind(tmp_path):
    first = driver(tmp_path, 'hang')
    wait_for(lambda: made(tmp_path))  # it has claimed a teacher
    claimed, second = next(iter(made(tmp_path))), driver(tmp_path)
    wait_for(lambda: len(records(tmp_path/'results_quick')) == 4)  # all but this teacher and its student
    assert made(tmp_path)[claimed] == 1 and second.poll() is None
    first.send_signal(signal.SIGKILL)
    said = second.communicate(timeout=200)[1]
    assert second.returncode == 0, said
    assert made(tmp_path).pop(claimed) == 2 and len(records(tmp_path/'results_quick')) == 6
    assert sorted(made(tmp_path).values()) == [1]*5+[2]


def test_a_worker_that_dies_while_nobody_waits():
    "Its pool is found broken when the next job is given to it: a new pool takes the job"
    executor = ProcessExecutor(1)
    try:
        assert executor.submit(os._exit, 1).exception(60) is not None
        assert executor.submit(abs, -3).result(60) == 3
    finally: executor.close()
