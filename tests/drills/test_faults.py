"A flipped byte or a lost tail in each kind of file, disks that fill, signals, several drivers: noticed and named, or without any effect"
import json, os, random, re, shutil, signal, subprocess, sys, time, zipfile
from pathlib import Path
import numpy as np, pandas as pd
import pytest
import work
from test_kills import leftovers, left, run, runtime, server  # noqa: F401, the last two are fixtures
from kd_leaf.data.archives import unpack
from kd_leaf.data.store import ImageStore, _verified
from kd_leaf.deploy.runtime import OnnxClassifier
from kd_leaf.distill.cache import TeacherLogits
from kd_leaf.models.weights import read_weights
from kd_leaf.study import files

pytestmark = pytest.mark.skipif(not hasattr(os, 'setsid'), reason='process groups are of POSIX')


@pytest.fixture(scope='module')
def whole(server, runtime, tmp_path_factory):  # noqa: F811
    "A folder in which all of the work is done"
    folder = tmp_path_factory.mktemp('faults')/'whole'
    work.prepare(folder)
    assert run(server, folder, 'serial', runtime)[0] == 0
    with zipfile.ZipFile(folder/'leaves.zip', 'w') as z:
        for f in sorted((folder/'leaves').rglob('*.png')): z.write(f, f.relative_to(folder))
    return folder


def first(folder, pattern): return sorted(folder.glob(pattern))[0]
def record_of(f): return json.loads(f.read_text())
def store(f): _verified.clear(); o = ImageStore(f.parent); return [o.images[:].tobytes(), o.labels.tolist(), list(o.splits), o.vocab]
def weights(f): read_weights(f, record_of(WHOLE[0]/f'results_quick/drill/runs/{f.stem}.json')['weights_sha256']); return f.read_bytes()
def logits(f): o = TeacherLogits(f.parent); return [o.rows.tobytes(), o.header['made_from'], o.n_views]
def record(f): files._checked.clear(); files.check_scores(f); return files.read_record(f)
def predictions(f): record(first(f.parent.parent, f'runs/{f.stem}.json')); return {k: v.tolist() for k, v in files.read_predictions(f).items()}
def onnx(f): o = OnnxClassifier(f); return [o.meta, o.probabilities(np.full((1, 20, 20, 3), 99, np.uint8)).tolist()]


def archive(f):
    dest = f.with_name('unpacked')
    shutil.rmtree(dest, ignore_errors=True)
    unpack(f, dest)
    return {str(o.relative_to(dest)): o.read_bytes() for o in sorted(dest.rglob('*')) if o.is_file()}


WHOLE = []
KINDS = {'images of a store': ('cache/stores/*/images.npy', store), 'labels of a store': ('cache/stores/*/meta.json', store),
         'weights': ('cache/weights/*.safetensors', weights), 'teacher logits': ('cache/logits/*/logits.bin', logits),
         'header of the logits': ('cache/logits/*/header.json', logits), 'record': ('results_quick/drill/runs/*.json', record),
         'predictions': ('results_quick/drill/preds/*.npz', predictions), 'ONNX file': ('student.onnx', onnx), 'archive': ('leaves.zip', archive)}


def flip(content, rng): k = rng.randrange(len(content)); return content[:k]+bytes([content[k] ^ 1 << rng.randrange(8)])+content[k+1:]
def cut(content, rng): return content[:rng.randrange(len(content))]


@pytest.mark.parametrize('kind', KINDS)
def test_damage(kind, whole, faults, rows, request):
    "What is read is what was written, or an error names the file and what to do"
    WHOLE[:] = [whole]
    pattern, read = KINDS[kind]
    file = first(whole, pattern)
    content, right, rng = file.read_bytes(), read(file), random.Random(kind)
    request.addfinalizer(lambda: file.write_bytes(content))
    for how, damage in dict(flipped=flip, cut=cut).items():
        said = dict(named=0, unchanged=0)
        for _ in range(faults):
            file.write_bytes(damage(content, rng))
            try: now = read(file)
            except (ValueError, OSError, RuntimeError) as e:
                assert str(file) in str(e) or str(file.parent) in str(e), f'{kind}, {how}: {e}'
                said['named'] += 1
            else:
                assert now == right, f'{kind}, {how}: in silence'
                said['unchanged'] += 1
        rows.append(dict(file=kind, damage=how, times=faults) | said)


@pytest.fixture(scope='module')
def rows(tables):
    found = []
    yield found
    if tables: pd.DataFrame(found).to_csv(tables/'damage.csv', index=False)


# a shell's background jobs ignore SIGINT, and so would what they start
DRIVER = 'import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.path.insert(0, {0!r}); import work; work.do(__import__("pathlib").Path(".").resolve(), "serial", "", {1!r})'


def driver(folder, runtime, **kw):  # noqa: F811
    code = DRIVER.format(str(Path(work.__file__).parent), runtime and str(runtime))
    env = {k: v for k, v in os.environ.items() if not k.startswith('KD_LEAF')} | dict(PYTHONPATH=str(Path(__file__).parents[2]), OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-c', code], cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **kw)


@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM], ids=lambda o: o.name)
def test_signals(sig, whole, server, runtime, tmp_path):  # noqa: F811
    "Stopped in the middle of a study, it says what is on record, and goes on where it was"
    folder = tmp_path/'stopped'
    work.prepare(folder)
    p = driver(folder, runtime)
    while not list(folder.glob('results_quick/drill/runs/*.json')): assert p.poll() is None; time.sleep(.02)
    p.send_signal(sig)
    assert re.search(r"stopped: \d of 6 runs of 'drill' are on record; start it again", p.communicate(timeout=60)[1]) and p.returncode
    assert run(server, folder, 'serial', runtime)[0] == 0
    assert left(folder) == left(whole) and leftovers(folder) == []


@pytest.mark.parametrize('n', [2, 4])
def test_several_at_once(n, whole, runtime, tmp_path, request):  # noqa: F811
    if n > 2: request.getfixturevalue('rest')
    folder = tmp_path/'crowd'
    work.prepare(folder)
    crowd = [driver(folder, runtime) for _ in range(n)]
    for p in crowd:
        said = p.communicate(timeout=600)[1]
        assert p.returncode == 0, said
    assert left(folder) == left(whole) and leftovers(folder) == []


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0 or not shutil.which('mount'), reason='only root may mount')
@pytest.mark.parametrize('what, mb', [('cache', 1), ('results_quick', .03), ('cache/stores', .02), ('cache/weights', .8), ('cache/logits', .01)])
def test_full_disk(what, mb, whole, server, runtime, tmp_path, request):  # noqa: F811
    "One line names the folder; with room again, the work goes on, and nothing is left of the first try"
    if what.startswith('cache/'): request.getfixturevalue('rest')
    folder = tmp_path/'full'
    work.prepare(folder)
    (folder/what).mkdir(parents=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={int(mb*1024)}k', 'tmpfs', folder/what], stderr=subprocess.DEVNULL).returncode:
        pytest.skip('mounting is not allowed here')
    try:
        p = driver(folder, runtime)
        _, err = p.communicate(timeout=300)
        last = err.strip().splitlines()[-1]
        assert p.returncode != 0 and 'DiskFull' in last and str(folder) in last, last
        subprocess.run(['mount', '-o', 'remount,size=200m', folder/what], check=True)
        assert run(server, folder, 'serial', runtime)[0] == 0
        assert left(folder) == left(whole) and leftovers(folder) == []
    finally: subprocess.run(['umount', '-l', folder/what], check=False)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0 or not shutil.which('mount'), reason='only root may mount')
@pytest.mark.parametrize('what', ['results_quick', 'cache'])
def test_read_only_folder(what, whole, server, runtime, tmp_path):  # noqa: F811
    "One line names the folder before anything is trained; once it may be written to, all goes well"
    folder = tmp_path/'read_only'
    work.prepare(folder)
    (folder/what).mkdir(parents=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro,size=200m', 'tmpfs', folder/what], stderr=subprocess.DEVNULL).returncode:
        pytest.skip('mounting is not allowed here')
    try:
        p = driver(folder, runtime)
        _, err = p.communicate(timeout=300)
        last = err.strip().splitlines()[-1]
        assert p.returncode and str(folder/what) in last and re.search('read-only|written', last, flags=re.I), last
        assert not list(folder.rglob('runs/*.json')) and not list(folder.rglob('weights/*.safetensors'))
        subprocess.run(['mount', '-o', 'remount,rw', folder/what], check=True)
        assert run(server, folder, 'serial', runtime)[0] == 0
        assert left(folder) == left(whole) and leftovers(folder) == []
    finally: subprocess.run(['umount', '-l', folder/what], check=False)


def test_clock_set_back(whole, server, runtime, tmp_path):  # noqa: F811
    "Files from the future change nothing"
    folder = tmp_path/'future'
    shutil.copytree(whole, folder)
    soon = time.time()+10**8
    for f in folder.rglob('*'): os.utime(f, (soon, soon))
    before = {f: f.read_bytes() for f in folder.glob('results_quick/drill/runs/*.json')}
    assert run(server, folder, 'serial', runtime)[0] == 0
    assert {f: f.read_bytes() for f in before} == before and left(folder) == left(whole)
