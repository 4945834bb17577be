"Archives from a bucket: a real S3 server, moto's, on the loopback address"
import pickle, shutil, zipfile
from dataclasses import replace
from pathlib import Path
import pytest
from PIL import Image
from kd_leaf.core import file_sha256
from kd_leaf.data.cards import find_images, have_images
from kd_leaf.data.store import ImageStore, image_store
from kd_leaf.study.config import load_study, make_runs
from kd_leaf.study.files import read_record, record_path, weights_path
from kd_leaf.study.runner import do_run, keep_run, run_study
from kd_leaf.study.sync import sync_results

pytest.importorskip('s3fs', reason="s3fs is not installed: pip install 'kd_leaf[cluster]'")
server = pytest.importorskip('moto.server', reason="moto is not installed: pip install 'moto[server]'")
CARD = 'name = "mine"\ntitle = ""\nclasses = ["a", "b"]\nsource = ""\nterms = ""\n[archive]\nfile = "mine.zip"\nsha256 = "{}"\n'


@pytest.fixture(scope='module')
def s3():
    "A server, and the environment in which every S3 library finds it"
    running = server.ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as m:
        for k, v in dict(ACCESS_KEY_ID='a', SECRET_ACCESS_KEY='b', DEFAULT_REGION='us-east-1', ENDPOINT_URL=f'http://{host}:{port}').items():
            m.setenv(f'AWS_{k}', v)
        import fsspec
        fsspec.filesystem('s3').mkdir('leaves')
        yield fsspec.filesystem('s3')
    running.stop()


@pytest.fixture
def card(s3, tmp_path, monkeypatch):
    "A function that writes a card for a zip in the bucket; the cache is empty"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('KD_LEAF_DATA', 's3://leaves/zips')
    for k, cls in enumerate('aabb'):
        (tmp_path/f'mine/{cls}').mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8), (k, 99, 0)).save(tmp_path/f'mine/{cls}/{k}.png')
    with zipfile.ZipFile('mine.zip', 'w') as z:
        for f in Path('mine').rglob('*.png'): z.write(f)
    shutil.rmtree('mine')
    s3.put('mine.zip', 'leaves/zips/mine.zip')
    Path('cards').mkdir()
    def write(sha256): Path('cards/mine.toml').write_text(CARD.format(sha256), encoding='utf-8')
    write(file_sha256('mine.zip'))
    return write


def fetched(tmp_path): return [f for f in (tmp_path/'cache').rglob('*') if f.is_file()]


def test_images_come_from_a_bucket_once(card, s3, tmp_path):
    assert not have_images('mine')
    folder = find_images('mine')
    assert folder.is_relative_to(tmp_path/'cache') and sorted(f.name for f in folder.rglob('*.png')) == ['0.png', '1.png', '2.png', '3.png']
    assert len(fetched(tmp_path)) == 4  # no zip is left
    s3.rm('leaves/zips/mine.zip')
    assert have_images('mine') and find_images('mine') == folder


def test_another_file_of_that_name_is_refused(card, tmp_path):
    card('0'*64)
    with pytest.raises(ValueError, match='s3://leaves/zips/mine.zip has sha256'): find_images('mine')
    assert not fetched(tmp_path)


@pytest.mark.parametrize('home, why', [('s3://none/zips', 'does not exist'), ('s3://leaves/other', '')])
def test_what_is_not_there_is_named(card, tmp_path, monkeypatch, home, why):
    monkeypatch.setenv('KD_LEAF_DATA', home)
    with pytest.raises(OSError, match=f'{home}/mine.zip cannot be read .*{why}.*: check the address') as e: find_images('mine')
    assert '\n' not in str(e.value) and not fetched(tmp_path)


def test_a_missing_package_is_named(card, tmp_path, monkeypatch):
    monkeypatch.setenv('KD_LEAF_DATA', 'abfs://leaves/zips')
    with pytest.raises(ImportError, match=r'abfs://leaves/zips/mine.zip: .*adlfs'): find_images('mine')


@pytest.fixture
def share(s3, tmp_path, monkeypatch):
    "A bucket that two nodes share, each with a cache of its own: a function that moves to a node"
    s3.mkdir('share')
    monkeypatch.setenv('KD_LEAF_SHARE', 's3://share/kd')
    yield lambda name: monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/name))
    s3.rm('share', recursive=True)


def test_a_node_without_images_gets_the_store_from_the_bucket(share, tmp_path):
    share('one')
    for k in range(24):
        (tmp_path/f'mine/{"ab"[k%2]}').mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 30+k).convert('RGB').save(tmp_path/f'mine/{"ab"[k%2]}/{k}.png')
    store = image_store(tmp_path/'mine', 16)
    sent = pickle.dumps(store)
    share('two')
    hidden = store.path.rename(tmp_path/'hidden')  # the other machine's disk
    got = pickle.loads(sent)
    assert got.path.is_relative_to(tmp_path/'two') and (got.images[:] == ImageStore(hidden).images[:]).all()


def test_a_student_is_trained_where_its_teacher_was_not(share, tmp_path, monkeypatch):
    "Two nodes, nothing in common but the bucket and the records"
    monkeypatch.chdir(tmp_path)
    plan = replace(load_study('leaf', 'quick'), name='far', size=16, seeds=[0], grid=dict(teachers=['cnn4'], students=['cnn4'], balance=['none']),
                   teacher=dict(epochs=1, mode='fp32'), student=dict(epochs=1, fraction=.5, views=1, mode='fp32'), teachers={})
    share('one')
    store = image_store('synthetic-leaves', 16)
    teacher, = (r for r in make_runs(plan, store) if r.role == 'teacher')
    keep_run(plan, *do_run(teacher, store, 'cpu'))
    share('two')
    made = run_study(plan, device='cpu')
    assert len(made) == 3 and made.date[made.key == teacher.key].item() == read_record(record_path(plan, teacher.key))['date']  # not made again
    assert weights_path(teacher.key).is_relative_to(tmp_path/'two') and weights_path(teacher.key).exists()
    url = 's3://share/results/far'
    assert sync_results(plan, url)['put'] == sorted(made.key)
    elsewhere = replace(plan, name='near')
    assert sync_results(elsewhere, url)['fetched'] == sorted(made.key)
    with pytest.raises(OSError, match='s3://none/far cannot be read and written .*check the address') as e: sync_results(plan, 's3://none/far')
    assert '\n' not in str(e.value)
