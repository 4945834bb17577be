"SIGKILL at random moments, started again each time until all is done: what it leaves is what an unbroken one leaves, byte for byte"
import hashlib, json, multiprocessing, os, random, shutil, signal, time, warnings
from collections import Counter
import pandas as pd
import pytest
import work

pytestmark = pytest.mark.skipif(not hasattr(os, 'setsid'), reason='process groups and SIGKILL are of POSIX')
SPAWN = dict(serial=0., processes=7., ray=12.)  # seconds that the engine's workers need to come up


@pytest.fixture(scope='module')
def server():
    "Processes that have imported everything: a start costs nothing"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['work', 'kd_leaf.all', 'kd_leaf.report.build', 'kd_leaf.deploy.page', 'kd_leaf.deploy.export', 'kd_leaf.study.runner'])
    return context


@pytest.fixture(scope='module')
def runtime(tmp_path_factory):
    "onnxruntime-web, fetched once; None, and no page is made, where npm cannot be reached"
    from kd_leaf.deploy.page import web_runtime
    try: return web_runtime()
    except RuntimeError as e: warnings.warn(f'drilled without the page: {e}')


def run(server, folder, engine, runtime, seconds=None):
    "Work until it ends, or is killed after some seconds; returns the exit code, and seconds"
    p, start = server.Process(target=work.do, args=(folder, engine, '', runtime)), time.perf_counter()
    p.start()
    p.join(seconds)
    killed = p.is_alive()
    if killed: kill(p.pid)
    p.join()
    return p.exitcode, time.perf_counter()-start


def kill(pid):
    "SIGKILL to a process and its workers"
    try: os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError: os.kill(pid, signal.SIGKILL)  # it had not come to lead a group yet


def left(folder):
    "Hashes of all that must be equal: predictions, weights, scores and losses on record, tables, figures, ONNX file, page"
    out = folder/'results_quick/drill'
    records = {f.stem: json.loads(f.read_text()) for f in (out/'runs').glob('*.json')}
    found = {k: (r['preds_sha256'], r['weights_sha256'], r['f1'], r['history']) for k, r in records.items()}
    files = [f for kind in ('tables/*', 'figures/*') for f in out.glob(kind) if 'cost' not in f.name and 'speed' not in f.name]
    files += [folder/'student.onnx', *folder.glob('leaf.html'), out/'images.csv', out/'classes.csv']
    return found | {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def leftovers(folder): return [str(f.relative_to(folder)) for f in folder.rglob('*') if f.name.endswith(('.tmp', '.part'))]


@pytest.mark.parametrize('engine', ['serial', 'processes'])
def test_kills(server, runtime, engine, tmp_path, kills, tables): drill(server, runtime, engine, tmp_path, kills, tables)


def test_kills_with_ray(server, runtime, tmp_path, kills, tables, rest):
    "A cluster of its own for each start; its processes end with the driver"
    pytest.importorskip('ray')
    drill(server, runtime, 'ray', tmp_path, kills, tables)


def drill(server, runtime, engine, tmp_path, kills, tables):
    work.prepare(tmp_path/'whole')
    code, whole_s = run(server, tmp_path/'whole', engine, runtime)
    assert code == 0
    whole, rng, rows = left(tmp_path/'whole'), random.Random(engine), []
    while len(rows) < kills:
        folder = tmp_path/f'broken{len(rows)}'
        work.prepare(folder)
        code = None
        while code != 0:
            limit = rng.uniform(0, max(whole_s/2, SPAWN[engine]+2)) if len(rows) < kills else None  # half, so that a folder is hit several times
            code, seconds = run(server, folder, engine, runtime, limit)
            assert code in (0, -signal.SIGKILL), (code, len(rows))
            if code == 0: break
            done = len([*(folder/'results_quick/drill/runs').glob('*.json')])
            rows.append(dict(engine=engine, kill=len(rows)+1, folder=folder.name, seconds=round(seconds, 2), records=done,
                             phase=(folder/'phase').read_text() if (folder/'phase').exists() else 'start'))
        assert left(folder) == whole, [k for k, v in left(folder).items() if whole.get(k) != v]
        assert code == run(server, folder, engine, runtime)[0] and leftovers(folder) == []
        shutil.rmtree(folder)
    df = pd.DataFrame(rows)
    print(Counter(df.phase))
    if tables: df.assign(equal=True).to_csv(tables/f'kills_{engine}.csv', index=False)
