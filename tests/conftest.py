"What all tests share: a copy of the project, and the promise to write nowhere in the checkout"
import shutil, subprocess, sys
from pathlib import Path
import hypothesis, pytest

ROOT = Path(__file__).resolve().parent.parent
hypothesis.settings.register_profile('kd_leaf', deadline=None, database=None)  # a busy machine is no fault; nothing is kept
hypothesis.settings.load_profile('kd_leaf')

SLOWEST = ('resume', 'own_data', 'notebooks', 'numbers', 'memory', 'deploy', 'browser')


def pytest_addoption(parser):
    parser.addoption('--kills', type=int, default=1, help='of each engine, in tests/drills')
    parser.addoption('--faults', type=int, default=5, help='of each kind and file, in tests/drills')
    parser.addoption('--tables', help='folder for the tables of tests/drills; none are written by default')


def pytest_collection_modifyitems(items):
    "Files that take minutes come first, so that of two processes none is left with one of them at the end"
    items.sort(key=lambda item: SLOWEST.index(name) if (name := item.path.stem.removeprefix('test_')) in SLOWEST else len(SLOWEST))


def git(*args):
    "What git prints, byte for byte; it takes no lock, since two processes of pytest may ask at once"
    return subprocess.run(['git', '--no-optional-locks', *args], cwd=ROOT, capture_output=True, check=True).stdout


def state():
    "What a test could change in the checkout: tracked files, new files, and what a quick run has left"
    quick = {f: f.stat().st_mtime_ns for f in (ROOT/'results_quick').rglob('*') if f.is_file()}
    return git('status', '--porcelain'), git('diff', 'HEAD'), quick


@pytest.fixture(scope='session', autouse=True)
def writes_nowhere():
    before = state()
    yield
    assert state() == before, f'a test wrote in the checkout:\n{git("status", "--porcelain").decode()}'


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    "Caches of the user's are neither read nor written, nor is what he shares"
    with pytest.MonkeyPatch.context() as m:
        for k in ('KD_LEAF_SHARE', 'KD_LEAF_TERMINAL', 'RAY_ADDRESS', 'HF_HUB_OFFLINE'): m.delenv(k, raising=False)
        for k in ('NO_PROXY', 'no_proxy'): m.setenv(k, '127.0.0.1,localhost')
        m.setenv('KD_LEAF_CACHE', str(tmp_path_factory.mktemp('kd_leaf_cache')))
        yield


@pytest.fixture(autouse=True)
def studies_of_its_own(monkeypatch):
    "Studies that a test gives by path are not known to the next one"
    if spec := sys.modules.get('kd_leaf.study.spec'): monkeypatch.setattr(spec, '_given', {})


@pytest.fixture(scope='session')
def copy(tmp_path_factory):
    "The project as git would commit it now, but for the results"
    dest = tmp_path_factory.mktemp('copy')/'kd_leaf'
    for f in git('ls-files', '-co', '-z', '--exclude-standard').decode().split('\0')[:-1]:
        if (ROOT/f).is_file() and not f.startswith('results/'):
            (dest/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/f, dest/f)
    return dest


@pytest.fixture
def cache_elsewhere(tmp_path, monkeypatch): monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))


@pytest.fixture(scope='module')
def store():
    "Drawn leaves of 32 pixels"
    from kd_leaf.data.store import image_store
    return image_store('synthetic-leaves', 32)


@pytest.fixture(scope='module')
def plan(store):
    "An eighth of the training images"
    from kd_leaf.data.loaders import SamplePlan
    return SamplePlan.of(store.where('train')[::8])


@pytest.fixture
def dls(store, plan):
    from kd_leaf.data.loaders import store_dls
    return store_dls(store, plan, bs=16, device='cpu')


@pytest.fixture
def vdls(store, plan):
    "The same, three views of each image"
    from kd_leaf.data.views import Views, view_dls
    return view_dls(store, Views(n=3), plan, bs=16, device='cpu')


@pytest.fixture(scope='module')
def teacher(store):
    from kd_leaf.core import seed_everything
    from kd_leaf.models.zoo import create_model
    seed_everything(0)
    return create_model('cnn4', len(store.vocab))
