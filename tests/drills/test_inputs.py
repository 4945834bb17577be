"A hundred bad inputs: each is refused in one line that names the value and the remedy, before any training, or handled, and how is said"
import io, math, os, warnings, zipfile
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from kd_leaf.all import *
from kd_leaf.checks import check_parameters
from kd_leaf.core import write_json
from kd_leaf.data.archives import fetch_file, put_shared, unpack
from kd_leaf.data.synthetic import draw_leaf
from kd_leaf.deploy.runtime import OnnxClassifier
from kd_leaf.models.weights import read_weights
from kd_leaf.models.zoo import create_model
from kd_leaf.study.executors import make_executor
from kd_leaf.study.files import read_record
from kd_leaf.study.run import Run

LEAF = Image.fromarray(draw_leaf('rust', size=40))
NAN, INF = math.nan, math.inf


# images: a function that writes a file; what is said of it, or '' where it is used, and how

def saved(image=LEAF, **kw): return lambda f: image.save(f, **kw)
def raw(content): return lambda f: f.write_bytes(content)
def png(cut=None): b = io.BytesIO(); LEAF.save(b, 'png'); return b.getvalue()[:cut]


def turned(f):
    exif = Image.Exif()
    exif[274] = 6
    LEAF.crop((0, 0, 40, 20)).save(f, exif=exif)


IMAGES = {
    ('text named .jpg', 'a.jpg'): (raw(b'not an image'), 'cannot identify image file'),
    ('an empty file', 'a.png'): (raw(b''), 'cannot identify image file'),
    ('a PNG cut short', 'a.png'): (raw(png(400)), 'truncated'),
    ('an HTML page named .png', 'a.png'): (raw(b'<html><body>404</body></html>'), 'cannot identify image file'),
    ('a PDF', 'a.pdf'): (raw(b'%PDF-1.7\n'), 'cannot identify image file'),
    ('an SVG', 'a.svg'): (raw(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), 'cannot identify image file'),
    ('an image without pixels', 'a.npy'): (lambda f: np.save(f, np.zeros((0, 0, 3), np.uint8)), 'cannot identify image file'),
    ('pixels of 32 bits', 'a.tif'): (saved(Image.fromarray(np.zeros((9, 9), np.int32))), 'pixels of 32 bits (mode I)'),
    ('pixels as floats', 'a.tif'): (saved(Image.fromarray(np.zeros((9, 9), np.float32))), 'pixels of 32 bits (mode F)'),
    ('200 megapixels', 'a.png'): (saved(Image.new('1', (20_000, 10_000))), 'exceeds limit'),
    ('a link that leads nowhere', 'a.png'): (lambda f: f.symlink_to('nowhere'), 'No such file'),
    ('pixels of 16 bits', 'a.png'): (saved(Image.fromarray(np.full((40, 40), 20_000, np.uint16))), ''),
    ('one channel', 'a.png'): (saved(LEAF.convert('L')), ''), ('grey and alpha', 'a.png'): (saved(LEAF.convert('LA')), ''),
    ('a palette', 'a.gif'): (saved(LEAF.convert('P')), ''), ('transparency', 'a.png'): (saved(LEAF.convert('RGBA')), ''),
    ('CMYK', 'a.jpg'): (saved(LEAF.convert('CMYK')), ''), ('black and white', 'a.png'): (saved(LEAF.convert('1')), ''),
    ('turned by EXIF', 'a.jpg'): (turned, ''), ('a moving GIF', 'a.gif'): (saved(save_all=True, append_images=[LEAF.rotate(90)]), ''),
    ('a WebP', 'a.webp'): (saved(), ''), ('a BMP', 'a.bmp'): (saved(), ''), ('a JPEG named .png', 'a.png'): (saved(format='jpeg'), ''),
    ('one pixel', 'a.png'): (saved(Image.new('RGB', (1, 1))), ''), ('one pixel high, 3000 wide', 'a.png'): (saved(Image.new('RGB', (3000, 1))), ''),
    ('a name with quotes', 'it\'s "a" leaf.png'): (saved(), ''), ('a name with a line break', 'a\nb.png'): (saved(), ''),
    ('a name in another script', '葉 яблоня.png'): (saved(), ''), ('a name of 200 letters', 'a'*196+'.png'): (saved(), ''),
}


# folders: a function that fills one; what is said

def tree(spec):
    def make(root):
        for k, (place, n) in enumerate(spec.items()):
            (root/place).mkdir(parents=True, exist_ok=True)
            for i in range(n): Image.fromarray(draw_leaf('rust', i=100*k+i, size=16)).save(root/place/f'{i}.png')
    return make


def beside(make, where, content=None):
    def do(root):
        make(root)
        (root/where).parent.mkdir(parents=True, exist_ok=True)
        (root/where).write_bytes(content) if content is not None else LEAF.save(root/where)
    return do


two = tree(dict(rust=9, scab=9))
FOLDERS = {
    'nothing in it': (lambda r: None, 'holds no class folders'), 'images without class folders': (beside(lambda r: None, 'a.png'), 'holds no class folders'),
    'one class': (tree(dict(rust=9)), "has a single class, 'rust'"), 'an empty class': (tree(dict(rust=9, scab=0)), 'scab'),
    'a class of one image': (tree(dict(rust=9, scab=1)), ''), 'classes of one image each': (tree(dict(rust=1, scab=1)), 'no image for'),
    'a text among the images': (beside(two, 'rust/notes.txt', b'in spring'), 'rust/notes.txt'),
    'an image beside the classes': (beside(two, 'loose.png'), ''), 'a split of unknown name': (tree({'train/a': 9, 'train/b': 9, 'holdout/a': 3}), 'holdout'),
    'a class beside the splits': (tree({'train/a': 9, 'train/b': 9, 'rust': 3}), 'rust'), 'folders of folders': (tree({'color/a': 9, 'grayscale/a': 9}), 'hold folders, not images'),
    'a wrapper folder': (tree({'leaves/a': 9, 'leaves/b': 9}), 'give'), 'classes that differ in case': (tree(dict(Rust=9, rust=9)), 'Rust'),
    'a class that only test has': (tree({'train/a': 9, 'train/b': 9, 'test/a': 3, 'test/c': 3}), 'c'),
    'a split without images': (tree({'train/a': 9, 'train/b': 9, 'valid/a': 0, 'test/a': 3, 'test/b': 3}), 'fill or remove'),
    "Thumbs.db and .DS_Store": (beside(beside(two, 'rust/Thumbs.db', b'x'), 'scab/.DS_Store', b'x'), ''),
    'class names of $, _, * and |': (tree({'$5_$6': 9, '*a*|b': 9}), ''), 'class names with quotes and <': (tree({'"a"': 9, '<b>\'': 9}), ''),
    'a folder named .png': (beside(two, 'rust/a.png/b.png'), ''),
    'a class name with a line break': (tree({'a\nb': 9, 'c': 9}), ''), 'class names in other scripts': (tree({'яблоня': 9, '葉': 9}), ''),
}


# values: what is called with what; what is said

def study(**kw): return Run(**dict(dataset='synthetic-leaves', dataset_sha256='a', role='student', model='cnn4', seed=0, size=32, epochs=2) | kw)


VALUES = {
    'size=0': lambda x: image_store(size=0), "size='32'": lambda x: image_store(size='32'), 'size=100000': lambda x: image_store(size=100_000),
    'size=31.5': lambda x: image_store(size=31.5), 'seed=-1': lambda x: image_store(seed=-1), "on_bad 'drop'": lambda x: image_store(on_bad='drop'),
    "'no-such-data'": lambda x: image_store('no-such-data'), 'source=5': lambda x: image_store(5),
    'nowhere.jpg: FileNotFoundError': lambda x: x.dls.test_dl(['nowhere.jpg']),
    'epochs=0': lambda x: distill(x.dls, x.net, 'cnn4', 0), 'epochs=-3': lambda x: distill(x.dls, x.net, 'cnn4', -3),
    'epochs=1.5': lambda x: distill(x.dls, x.net, 'cnn4', 1.5), "epochs='3'": lambda x: distill(x.dls, x.net, 'cnn4', '3'),
    'lr=0': lambda x: distill(x.dls, x.net, 'cnn4', 1, lr=0.), 'lr=nan': lambda x: distill(x.dls, x.net, 'cnn4', 1, lr=NAN),
    'lr=1000000000.0': lambda x: distill(x.dls, x.net, 'cnn4', 1, lr=1e9), 'temperature=0': lambda x: distill(x.dls, x.net, 'cnn4', 1, temperature=0),
    'temperature=inf': lambda x: distill(x.dls, x.net, 'cnn4', 1, temperature=INF), 'alpha=2': lambda x: distill(x.dls, x.net, 'cnn4', 1, alpha=2),
    'wd=-1': lambda x: distill(x.dls, x.net, 'cnn4', 1, wd=-1), "loss 'sof_target'": lambda x: distill(x.dls, x.net, 'cnn4', 1, loss='sof_target'),
    "precision 'fp8'": lambda x: distill(x.dls, x.net, 'cnn4', 1, precision='fp8'), "'cnn5'": lambda x: distill(x.dls, x.net, 'cnn5', 1),
    'a teacher is a module': lambda x: distill(x.dls, 'resnet50', 'cnn4', 1), 'model=None': lambda x: distill(x.dls, x.net, None, 1),
    'seed=0.5': lambda x: distill(x.dls, x.net, 'cnn4', 1, seed=.5), 'class_weights of shape (2,)': lambda x: make_learner(x.dls, 'cnn4', class_weights=[1, 2]),
    "'nowhere.pth'": lambda x: make_learner(x.dls, 'cnn4', weights='nowhere.pth'), 'views=1.5': lambda x: study(views=1.5), 'views=5': lambda x: view_dls(x.store, 5),
    'fraction=0': lambda x: study(fraction=0), 'bs=1': lambda x: study(bs=1), "balance 'smot'": lambda x: study(balance='smot'), 'start_size=64': lambda x: study(start_size=64),
    "engine 'procceses'": lambda x: make_executor('procceses'), 'workers=0': lambda x: make_executor('processes', 0),
    "study 'leef'": lambda x: load_study('leef'), "profile 'gpuu'": lambda x: load_study('leaf', 'gpuu'), "'../leaf'": lambda x: load_study('../leaf'),
    "parameter 'profil'": lambda x: check_parameters(dict(profil=1), {}, ['profile']),
}


# files: a function that writes one, and what reads it; what is said

def zipped(content):
    def write(f):
        with zipfile.ZipFile(f, 'w') as z:
            for name, text in content.items(): z.writestr(name, text)
    return write


ROOT = Path(__file__).resolve().parents[2]
LEAVES = (ROOT/'nbs/studies/leaf.toml').read_text(encoding='utf-8').replace('name = "leaf"', 'name = "mine"')


def toml(old, new): return lambda f: f.write_text(LEAVES.replace(old, new, 1), encoding='utf-8')


out = lambda read: lambda f: read(f, f.with_name('out'))
FILES = {
    ('a zip that is none', 'a.zip'): (raw(b'PK'), out(unpack), 'cannot be unpacked'), ('a zip cut short', 'a.zip'): (raw(b'PK\x03\x04'+b'0'*50), out(unpack), 'cannot be unpacked'),
    ('a zip with ../', 'a.zip'): (zipped({'../evil': 'x'}), out(unpack), 'paths outside its folder'),
    ('a zip with an absolute path', 'a.zip'): (zipped({'/tmp/evil': 'x'}), out(unpack), 'paths outside its folder'),
    ('a zip that unpacks to too much', 'a.zip'): (zipped({'big': '0'*10**6}), lambda f: unpack(f, f.with_name('out'), 1e-4), 'more than the limit'),
    ('ONNX that is text', 'a.onnx'): (raw(b'hello'), OnnxClassifier, 'a.onnx'), ('no ONNX file', 'a.onnx'): (lambda f: None, OnnxClassifier, 'a.onnx'),
    ('weights that are text', 'a.safetensors'): (raw(b'hello'), lambda f: read_weights(f, '0'*64), 'a.safetensors'),
    ('weights of a pickle', 'a.pth'): (lambda f: torch.save(dict(a=print), f), lambda f: create_model('cnn4', 2, str(f)), 'a.pth'),
    ('a record that is no JSON', 'a.json'): (raw(b'{"key": 1'), read_record, 'is damaged'), ('a record of another kind', 'a.json'): (lambda f: write_json(f, [1]), read_record, 'is no record'),
    ('a record without fields', 'a.json'): (lambda f: write_json(f, dict(key='a')), read_record, 'lacks'),
    ('TOML that is none', 'mine.toml'): (raw(b'name = '), lambda f: load_study(str(f)), 'no valid TOML'), ('TOML, a key misspelt', 'mine.toml'): (toml('title', 'titel'), lambda f: load_study(str(f)), "did you mean 'title'"),
    ('TOML, text for a list', 'mine.toml'): (toml('teachers = ["densenet121", "resnet101"]', 'teachers = "densenet121"'), lambda f: load_study(str(f)), 'give a list'),
    ('TOML of another name', 'mine.toml'): (toml('name = "mine"', 'name = "leaf"'), lambda f: load_study(str(f)), 'it must be the name of the file'),
    ('a bucket of an unknown kind', 'a.zip'): (lambda f: None, lambda f: fetch_file('s33://leaves/a.zip', f), 's33://leaves/a.zip cannot be read'),
    ('a file that is not in its bucket', 'a.zip'): (lambda f: None, lambda f: fetch_file('memory://leaves/none.zip', f), 'check the address'),
    ('a share that is no URL', 'a'): (lambda f: os.environ.update(KD_LEAF_SHARE='/mnt'), lambda f: put_shared(Path(os.environ['KD_LEAF_CACHE'])/'a'), 'KD_LEAF_SHARE=/mnt is no URL'),
}


@pytest.fixture(scope='module')
def given():
    class given: store = image_store('synthetic-leaves', 24)
    given.dls, given.net = store_dls(given.store, bs=32, device='cpu'), create_model('cnn4', given.store.counts().shape[0])
    return given


@pytest.fixture(scope='module')
def noted(tables):
    rows = []
    yield rows
    if tables: pd.DataFrame(rows).to_csv(tables/'inputs.csv', index=False)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('KD_LEAF_SHARE', '')


def check(noted, kind, what, call, said, hidden=''):
    "Refused with these words, in one line or in one and a list, or handled; `hidden` is a folder that differs from run to run"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        try: call()
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as e: text, outcome = str(e), 'refused'
        else: text, outcome = next((str(w.message) for w in seen if issubclass(w.category, UserWarning)), ''), 'used, with a warning'
    if outcome == 'refused': assert said and said in text, text
    else: assert not said or said in text, f'used, and nothing was said: {text}'
    if not text: outcome = 'used'
    first, *listed = text.replace(f'{hidden}/', '').replace(f'{ROOT}/', '').split('\n')
    line = f'{first} {listed[0].strip()}' if first.endswith(':') and listed else first
    assert len(line) <= 300, line
    noted.append(dict(kind=kind, input=what, outcome=outcome, said=line))


@pytest.mark.parametrize('what, name', IMAGES, ids=lambda o: str(o)[:30])
def test_images(what, name, noted, tmp_path):
    write, said = IMAGES[what, name]
    two(tmp_path/'mine')
    write(tmp_path/'mine/rust'/name)
    def read():
        images = image_store(tmp_path/'mine', 16).images
        assert images.shape == (19, 16, 16, 3) and images.dtype == np.uint8
    check(noted, 'image', what, read, said, tmp_path/'mine')


@pytest.mark.parametrize('what', FOLDERS)
def test_folders(what, noted, tmp_path):
    make, said = FOLDERS[what]
    (tmp_path/'mine').mkdir()
    make(tmp_path/'mine')
    check(noted, 'folder', what, lambda: image_store(tmp_path/'mine', 16), said, tmp_path)


def test_an_image_in_a_folder_within_a_class_is_one_of_it(tmp_path):
    FOLDERS['a folder named .png'][0](tmp_path/'mine')
    assert image_store(tmp_path/'mine', 16).counts().loc['rust'].sum() == 10


@pytest.mark.parametrize('what', VALUES)
def test_values(what, noted, given, tmp_path):
    check(noted, 'value', what, lambda: VALUES[what](given), what, tmp_path)


@pytest.mark.parametrize('what, name', FILES, ids=lambda o: str(o)[:30])
def test_files(what, name, noted, tmp_path):
    write, read, said = FILES[what, name]
    write(tmp_path/name)
    check(noted, 'file', what, lambda: read(tmp_path/name), said, tmp_path)


def test_there_are_a_hundred(): assert len(IMAGES)+len(FOLDERS)+len(VALUES)+len(FILES) >= 100
