"What a user sees of odd images, odd folders, odd archives and damaged stores"
import errno, io, os, re, shutil, struct, sys, threading, tracemalloc, warnings, zipfile, zlib
from pathlib import Path
from unittest.mock import Mock, patch
import numpy as np
import pytest
from PIL import Image
from kd_leaf.core import DiskFull
from kd_leaf.data import cards, files as fl, store as st
from kd_leaf.data.archives import unpack
from kd_leaf.data.cards import Card, arrange, find_images, load_card
from kd_leaf.data.files import write_card, decode_image, list_images, open_image
from kd_leaf.data.store import image_store
from kd_leaf.data.synthetic import draw_leaf

posix = pytest.mark.skipif(os.name != 'posix', reason='names and permissions of POSIX')


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path_factory.mktemp('cache')))
    monkeypatch.delenv('KD_LEAF_DATA', raising=False)


def leaf(i, size=24, disease='rust'): return Image.fromarray(draw_leaf(disease, i=i, size=size))


def tree(root, spec):
    "{'train/rust': 3} makes three different images in that folder"
    for k, (folder, n) in enumerate(spec.items()):
        (root/folder).mkdir(parents=True, exist_ok=True)
        for i in range(n): leaf(100*k+i).save(root/folder/f'{i}.png')
    return root


def warned(f, *args, **kwargs):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        out = f(*args, **kwargs)
    return out, [str(o.message) for o in seen]


def exif_turned(path):
    exif = Image.Exif()
    exif[274] = 6
    leaf(1).crop((0, 0, 24, 12)).save(path, exif=exif)


def huge(path):
    "A PNG that declares 60,000 x 60,000 pixels in a hundred bytes"
    def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
    head = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', head)+chunk(b'IDAT', zlib.compress(b'\0'))+chunk(b'IEND', b''))


def animated(path): leaf(1).save(path, save_all=True, append_images=[leaf(2), leaf(3)])
def cut_short(path): buffer = io.BytesIO(); leaf(1, 64).save(buffer, 'jpeg'); path.write_bytes(buffer.getvalue()[:400])
def palette_alpha(path): leaf(1).convert('RGBA').quantize(16).save(path, transparency=0)
def sixteen_bits(path): Image.fromarray(np.full((24, 24), 40000, np.uint16)).save(path)
def floats(path): Image.fromarray(np.full((24, 24), .5, np.float32)).save(path)


GOOD, IGNORED = 'an image', 'ignored'
ODD = { # file: how it is made, what the user sees: GOOD, IGNORED, or words of the error
    'plain.jpg': (lambda f: leaf(1).save(f), GOOD),
    'UPPER.JPG': (lambda f: leaf(2).save(f), GOOD),
    'cmyk.jpg': (lambda f: leaf(3).convert('CMYK').save(f), GOOD),
    'grey.png': (lambda f: leaf(4).convert('L').save(f), GOOD),
    'grey-alpha.png': (lambda f: leaf(5).convert('LA').save(f), GOOD),
    'alpha.png': (lambda f: leaf(6).convert('RGBA').save(f), GOOD),
    'palette.png': (lambda f: leaf(7).convert('P').save(f), GOOD),
    'palette-alpha.png': (palette_alpha, GOOD),
    'one-bit.png': (lambda f: leaf(8).convert('1').save(f), GOOD),
    'sixteen-bits.png': (sixteen_bits, GOOD),
    'animated.gif': (animated, GOOD),
    'pages.tiff': (animated, GOOD),
    'turned.jpg': (exif_turned, GOOD),
    'photo.webp': (lambda f: leaf(9).save(f), GOOD),
    'photo.bmp': (lambda f: leaf(10).save(f), GOOD),
    'thin.png': (lambda f: Image.new('RGB', (1, 300)).save(f), GOOD),
    'png named.jpg': (lambda f: leaf(11).save(f, 'png'), GOOD),
    'Röhre größer 葉.png': (lambda f: leaf(12).save(f), GOOD),
    'quote \'"& $5_$6.png': (lambda f: leaf(13).save(f), GOOD),
    'new\nline.png': (lambda f: leaf(14).save(f), GOOD),
    'sub/deeper/nested.png': (lambda f: leaf(15).save(f), GOOD),
    'no suffix': (lambda f: leaf(16).save(f, 'png'), GOOD),
    'link.png': (lambda f: f.symlink_to('plain.jpg'), GOOD),
    'cut-short.jpg': (cut_short, 'runcated'),
    'empty.jpg': (lambda f: f.write_bytes(b''), 'cannot identify image file'),
    'text.jpg': (lambda f: f.write_text('not an image', encoding='utf-8'), 'cannot identify image file'),
    'notes.txt': (lambda f: f.write_text('autumn', encoding='utf-8'), 'cannot identify image file'),
    'huge.png': (huge, 'decompression bomb'),
    'floats.tif': (floats, 'whose range is not known'),
    'broken link.png': (lambda f: f.symlink_to('nowhere.png'), 'FileNotFoundError'),
    'loop.png': (lambda f: f.symlink_to('loop.png'), 'OSError'),
    '.hidden.png': (lambda f: f.write_bytes(b''), IGNORED),
    '.DS_Store': (lambda f: f.write_bytes(b''), IGNORED),
    'Thumbs.db': (lambda f: f.write_bytes(b''), IGNORED),
    'desktop.ini': (lambda f: f.write_bytes(b''), IGNORED),
    '.ipynb_checkpoints/copy.png': (lambda f: leaf(1).save(f), IGNORED),
}


@posix
def test_folder_of_odd_files(tmp_path):
    "Each file for itself, and all of them at once: one error that names every bad one and no other"
    tree(tmp_path, dict(rust=20, scab=20))
    for name, (make, _) in ODD.items():
        f = tmp_path/'rust'/name
        f.parent.mkdir(parents=True, exist_ok=True)
        make(f)
    good, bad, ignored = ([k for k, (_, o) in ODD.items() if want(o)] for want in
                          (lambda o: o == GOOD, lambda o: o not in (GOOD, IGNORED), lambda o: o == IGNORED))
    for k in good: assert decode_image(tmp_path/'rust'/k, 16).shape == (16, 16, 3), k
    for k in bad: assert ODD[k][1] in decode_image(tmp_path/'rust'/k, 16), k
    with pytest.raises(ValueError, match=f'{len(bad)} of {40+len(good)+len(bad)} files cannot be read as images') as e:
        warned(image_store, tmp_path, 16)
    lines = str(e.value).split('\n  ')[1:]
    assert len(lines) == len(bad) and all(any(f'rust/{k}: ' in o and ODD[k][1] in o for o in lines) for k in bad)
    assert not list(Path(os.environ['KD_LEAF_CACHE'], 'stores').iterdir()), 'a half-written store stayed'
    store, said = warned(image_store, tmp_path, 16, on_bad='skip')
    assert sum(f'{len(bad)} of' in o for o in said) == 1
    assert {f'rust/{k}' for k in good} <= set(store.ids) and not {f'rust/{k}' for k in bad+ignored} & set(store.ids)
    for k, name in enumerate(store.ids):
        assert (store.images[k] == decode_image(tmp_path/name, 16)).all(), name


def test_first_frame_and_orientation(tmp_path):
    "The first frame of an animation, the camera's orientation, all of 16 bits"
    animated(tmp_path/'a.tiff'); exif_turned(tmp_path/'t.png'); sixteen_bits(tmp_path/'s.png')
    assert (np.asarray(open_image(tmp_path/'a.tiff')) == np.asarray(leaf(1))).all()
    assert open_image(tmp_path/'t.png').size == (12, 24)
    assert np.unique(decode_image(tmp_path/'s.png', 8)) == [40000//257]


@posix
@pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid() == 0, reason='root may read everything')
def test_unreadable_file(tmp_path):
    (tree(tmp_path, dict(rust=8, scab=8))/'rust/0.png').chmod(0)
    with pytest.raises(ValueError, match='rust/0.png: PermissionError'): image_store(tmp_path, 16)


@pytest.mark.parametrize('code', [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_faults_of_the_machine_blame_no_image(tmp_path, code):
    tree(tmp_path, dict(rust=8, scab=8))
    with patch.object(Image, 'open', side_effect=OSError(code, os.strerror(code))):
        with pytest.raises(OSError, match='the machine failed, not the image'): image_store(tmp_path, 16, on_bad='skip')
    with patch.object(Image, 'open', side_effect=MemoryError()):
        with pytest.raises(MemoryError, match='out of memory'): image_store(tmp_path, 16, on_bad='skip')


FOLDERS = { # what is there: words of the error
    'dev, holdout beside train': {'train/a': 3, 'train/b': 3, 'dev/a': 2, 'dev/b': 2, 'holdout/a': 1},
    'c beside train': {'train/a': 3, 'train/b': 3, 'c': 3},
    'color, grayscale hold folders, not images': {f'{k}/{c}': 2 for k in ('color', 'grayscale') for c in 'ab'},
    'leaves itself': {'leaves/a': 8, 'leaves/b': 8},
    'wrapped itself': {'wrapped/train/a': 8, 'wrapped/train/b': 8},
    'test, train hold images, not class folders': {'train': 4, 'test': 4},
    'no image in train/b': {'train/a': 3, 'train/b': 0},
    'a class that is never taught': {'train/a': 8, 'train/b': 8, 'valid/c': 2, 'valid/a': 1},
    "a single class, 'a'": {'a': 9},
    'no image for test: where splits are made here, a class of 6 images': {'a': 2, 'b': 2},
    'no image for valid: where splits are made here': {'train/a': 2, 'train/b': 2, 'test/a': 2, 'test/b': 2},
    'holds no class folders': {'.hidden': 2},
}


@pytest.mark.parametrize('why', FOLDERS)
def test_folders_that_are_not_understood(tmp_path, why):
    tree(tmp_path, FOLDERS[why])
    with pytest.raises(ValueError, match=why): warned(image_store, tmp_path, 16)
    assert not list(Path(os.environ['KD_LEAF_CACHE'], 'stores').iterdir())


def test_empty_split_after_bad_files(tmp_path):
    tree(tmp_path, {f'{s}/{c}': 3 for s in ('train', 'valid', 'test') for c in 'ab'})
    for f in (tmp_path/'valid').rglob('*.png'): f.write_bytes(b'')
    with pytest.raises(ValueError, match='no image for valid'): warned(image_store, tmp_path, 16, on_bad='skip')


def test_what_is_said(tmp_path):
    "Loose images, one image with two labels, one image in two splits, classes that differ in case"
    tree(tmp_path, {f'{s}/{c}': 3 for s in ('train', 'valid', 'test') for c in ('a', 'b', 'B')})
    if len(list((tmp_path/'train').iterdir())) == 2: pytest.skip('a file system without upper and lower case')
    leaf(900).save(tmp_path/'train'/'loose.png')
    shutil.copy(tmp_path/'train/a/0.png', tmp_path/'train/b/again.png')
    shutil.copy(tmp_path/'train/a/1.png', tmp_path/'test/a/again.png')
    _, said = warned(image_store, tmp_path, 16)
    for words in ('train/loose.png, belong to no class', '1 images have more than one label, such as train/a/0.png',
                  '1 images are in more than one split', 'B, b are classes whose names differ in case only'):
        assert sum(words in o for o in said) == 1, (words, said)


def test_file_as_data_set(tmp_path):
    (tmp_path/'set.zip').write_bytes(b'')
    with pytest.raises(ValueError, match='set.zip is a file: give a folder'): image_store(tmp_path/'set.zip')
    with pytest.raises(ValueError, match='there is no folder'): image_store('./nowhere')


def test_card_wins_over_folder(tmp_path, monkeypatch):
    "A folder of a card's name in the working directory is meant only as ./name"
    monkeypatch.chdir(tmp_path)
    tree(tmp_path, {'road-type/a': 8, 'road-type/b': 8, 'synthetic-leaves/a': 8, 'synthetic-leaves/b': 8})
    with pytest.raises(FileNotFoundError, match='cannot be fetched'): warned(find_images, 'road-type')
    _, said = warned(lambda: pytest.raises(FileNotFoundError, find_images, 'road-type'))
    assert 'say "./road-type"' in said[0]
    assert image_store('./road-type', 16).vocab == ['a', 'b'] and image_store(Path('road-type'), 16).name == 'road-type'
    assert image_store('synthetic-leaves', 16).synthetic and not image_store('./synthetic-leaves', 16).synthetic


@pytest.mark.parametrize('size', [0, -1, 7, 1025, 100_000, 31.5, '32', None, True, float('nan')])
def test_sizes(tmp_path, size):
    with pytest.raises(ValueError, match='size='): image_store(tree(tmp_path, dict(a=8, b=8)), size)


@pytest.mark.parametrize('seed', [-1, 1.5, '0', None])
def test_seeds(tmp_path, seed):
    for source in (tree(tmp_path, dict(a=8, b=8)), 'synthetic-leaves'):
        with pytest.raises(ValueError, match='seed='): image_store(source, 16, seed=seed)


def test_full_disk(tmp_path):
    "Known before anything is decoded; and if the disk fills later, nothing is left there"
    tree(tmp_path, dict(a=8, b=8))
    stores = Path(os.environ['KD_LEAF_CACHE'])/'stores'
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    with patch.object(st.shutil, 'disk_usage', return_value=usage), patch.object(st, 'decode_image') as decode:
        with pytest.raises(DiskFull, match='free: choose a smaller size'): image_store(tmp_path, 16)
        decode.assert_not_called()
    with patch.object(st, '_write_meta', side_effect=OSError(errno.ENOSPC, 'No space left on device')):
        with pytest.raises(DiskFull, match=f'no space left in {re.escape(str(stores))}'): image_store('synthetic-leaves', 16)
    assert not list(stores.iterdir())


def test_little_memory_is_said_before_decoding(tmp_path):
    "An estimate against the memory that is free; nothing is decoded, drawn or left behind"
    tree(tmp_path, dict(a=8, b=8))
    with patch('psutil.virtual_memory', return_value=Mock(available=10**6)), patch.object(st, 'decode_image') as decode, patch.object(st, 'synthetic_leaves') as draw:
        for source in (tmp_path, 'synthetic-leaves'):
            with pytest.raises(MemoryError, match='of memory, and 0.0 GB are free: choose a smaller size'): image_store(source, 512)
        decode.assert_not_called(), draw.assert_not_called()
    assert not list((Path(os.environ['KD_LEAF_CACHE'])/'stores').iterdir())


def test_hashes_are_remembered(tmp_path):
    "No file is read again that has not changed; one that has is noticed, also with its old size and time"
    tree(tmp_path, dict(a=8, b=8))
    first = image_store(tmp_path, 16)
    with patch.object(fl, '_hash_file', side_effect=AssertionError('read again')): image_store(tmp_path, 16)
    f = tmp_path/'a/0.png'
    stat, old = f.stat(), f.read_bytes()
    f.write_bytes(old[:-1]+bytes([old[-1]^1])); os.utime(f, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if os.name == 'posix': assert list_images(tmp_path).set_index('id').sha256['a/0.png'] == fl.file_sha256(f)
    leaf(77).save(f)
    assert image_store(tmp_path, 16).sha256 != first.sha256
    next((Path(os.environ['KD_LEAF_CACHE'])/'hashes').iterdir()).write_text('{', encoding='utf-8')
    assert len(image_store(tmp_path, 16)) == 16


def test_leftovers_are_cleaned(tmp_path):
    stores = Path(os.environ['KD_LEAF_CACHE'])/'stores'
    old, theirs = stores/'.abc.host.1.1.tmp', stores/'.def.host.1.1.tmp'
    for o in (old, theirs): o.mkdir(parents=True); (o/'images.npy').write_bytes(b'half')
    os.utime(old, (0, 0))
    image_store(tree(tmp_path, dict(a=8, b=8)), 16)
    assert not old.exists() and theirs.exists() # another machine may be writing it still


@pytest.mark.parametrize('name,change', [('images.npy', 'flip'), ('images.npy', 'cut'), ('images.npy', 'gone'),
    ('meta.json', 'flip'), ('meta.json', 'cut'), ('meta.json', 'foreign')])
def test_damaged_store(tmp_path, name, change):
    source = tree(tmp_path, dict(a=8, b=8))
    path = image_store(source, 16).path
    f = path/name
    old = f.read_bytes()
    at = old.index(b'"labels": [')+20 if name == 'meta.json' else len(old)-5
    new = dict(flip=old[:at]+bytes([old[at]^1])+old[at+1:], cut=old[:200], foreign=b'[1]')
    f.unlink() if change == 'gone' else f.write_bytes(new[change])
    st._verified.clear()
    with pytest.raises(ValueError, match='damaged') as e: image_store(source, 16)
    assert str(f) in str(e.value) and 'remove' in str(e.value)
    shutil.rmtree(path)
    assert len(image_store(source, 16)) == 16


def test_two_builders_at_once(tmp_path):
    tree(tmp_path, dict(a=12, b=12))
    found, threads = [], [threading.Thread(target=lambda: found.append(image_store(tmp_path, 16))) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(found) == 4 and len({o.path for o in found}) == 1
    assert len(list((Path(os.environ['KD_LEAF_CACHE'])/'stores').iterdir())) == 1


def zipped(path, files, **kwargs):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, **kwargs) as z:
        for k, v in files.items(): z.writestr(k, v)
    return path


def test_second_unpacker_finds_the_first(tmp_path):
    "Also if the first ends while the second is at work"
    path, dest = zipped(tmp_path/'a.zip', {'x.txt': 'x'}), tmp_path/'dest'
    real = zipfile.ZipFile.extractall
    def late(self, to): real(self, to); dest.mkdir(exist_ok=True); (dest/'x.txt').write_text('first', encoding='utf-8')
    with patch.object(zipfile.ZipFile, 'extractall', late): assert unpack(path, dest) == dest
    assert (dest/'x.txt').read_text(encoding='utf-8') == 'first' and {o.name for o in tmp_path.iterdir()} == {'a.zip', 'dest'}


def test_archives(tmp_path):
    bomb = zipped(tmp_path/'bomb.zip', {'zeros': bytes(5_000_000)})
    with pytest.raises(ValueError, match='more than the limit of 0.001 GB'): unpack(bomb, tmp_path/'out', .001)
    with pytest.raises(ValueError, match='paths outside its folder'): unpack(zipped(tmp_path/'e.zip', {'../x': 'x'}), tmp_path/'out')
    whole = zipped(tmp_path/'w.zip', {'x.txt': os.urandom(2000)}).read_bytes()
    for content in (b'', whole[:500], b'PK', whole[:900]+bytes([whole[900]^1])+whole[901:]):
        (tmp_path/'d.zip').write_bytes(content)
        with pytest.raises(ValueError, match='d.zip cannot be unpacked .* fetch it again'): unpack(tmp_path/'d.zip', tmp_path/'out')
    assert not (tmp_path/'out').exists() and not list(tmp_path.glob('.*'))


def test_a_zip_that_was_replaced(tmp_path, monkeypatch):
    "Without a sha256 on its card, too: other images, not those unpacked before"
    monkeypatch.chdir(tmp_path), monkeypatch.setenv('KD_LEAF_DATA', str(tmp_path))
    (tmp_path/'cards').mkdir()
    (tmp_path/'cards/garden.toml').write_text('name = "garden"\ntitle = "t"\nclasses = ["a", "b"]\nsource = "s"\nterms = "t"\n')
    for n in (2, 3):
        zipped(tmp_path/'garden.zip', {f'garden/train/{c}/{k}.txt': f'{c}{k}' for c in 'ab' for k in range(n)})
        assert len([*(find_images('garden')/'train/a').iterdir()]) == n


@pytest.mark.skipif(sys.platform != 'linux', reason='file names of Linux')
def test_names_that_are_not_utf8(tmp_path):
    for c in 'ab':
        tree(tmp_path, {c: 8})
        os.rename(next((tmp_path/c).iterdir()), os.fsencode(tmp_path/c)+b'/Bl\xe4tter.png')
    store = image_store(tmp_path, 16)
    assert len(store) == 16 and len(st.take_fraction(store.labels, store.ids, .5)) == 8


@pytest.mark.parametrize('key,value', [('name', '../x'), ('name', 'a/b'), ('name', ''), ('name', '..'), ('name', 3), ('name', 'a\\b'),
    ('classes', ['a', '../b']), ('classes', ['a', '/b']), ('archive', dict(file='../x.zip'))])
def test_names_on_cards_stay_inside(key, value):
    with pytest.raises(ValueError, match='choose a name without'): Card(**dict(name='x', title='', classes=['a', 'b'], source='', terms='') | {key: value})


@pytest.mark.parametrize('text,why', [('name = ', 'mine.toml'), ('name = "mine"', 'title, classes, source, terms missing'),
    ('titel = "x"', "unknown key 'titel': did you mean 'title'"), ('name = "x"\ntitle = ""\nclasses = []\nsource = ""\nterms = ""', 'called mine.toml')])
def test_cards_say_what_is_wrong(tmp_path, monkeypatch, text, why):
    (tmp_path/'cards').mkdir()
    (tmp_path/'cards/mine.toml').write_text(text, encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=why): load_card('mine')


@posix
def test_card_of_a_folder_with_odd_names(tmp_path, monkeypatch):
    "Quotes, backslashes, newlines, control characters and unicode go through TOML and come back"
    odd = 'Röhre "lang" \'葉\' = [x] \x07\x7f'
    tree(tmp_path/odd, {'a "b" \n $5_$6 \x7f': 8, '葉 = #': 8})
    monkeypatch.chdir(tmp_path)
    card = write_card(odd, 'C:\\new\t"x"\n', about=''.join(map(chr, range(1, 256))))
    assert load_card(odd) == card and sorted(card.classes) == sorted(os.listdir(odd))


def test_arrange_never_writes_to_a_source(tmp_path):
    "Files of equal name in one class: both are kept, and a hard link's source is as it was"
    src = tmp_path/'src'
    tree(src, {'one': 6, 'two': 6})
    names = [f'{d}/{i}.png' for d in ('one', 'two') for i in range(6)]
    (src/'t.csv').write_text('image,label\n'+''.join(f'{o},rust\n' for o in names+names[:2]), encoding='utf-8')
    before = {o: (src/o).read_bytes() for o in names}
    layout = dict(kind='csv', csv='t.csv', images='.', image='image', label='label', split=[.5, .25, .25])
    dest = arrange(Card('x', '', ['rust', 'scab'], '', '', layout=layout), src, tmp_path/'dest')
    assert {o: (src/o).read_bytes() for o in names} == before
    assert sorted(f.read_bytes() for f in dest.rglob('*.png')) == sorted(before.values())
    with patch.object(cards.os, 'link', side_effect=OSError('another disk')): # and where links cannot be made
        dest = arrange(Card('x', '', ['rust', 'scab'], '', '', layout=layout), src, tmp_path/'copies')
    assert sorted(f.read_bytes() for f in dest.rglob('*.png')) == sorted(before.values())


def test_constant_memory(tmp_path):
    "Images are written to the file one by one, never held together"
    tree(tmp_path, dict(a=20, b=20))
    with patch.object(np, 'stack', side_effect=AssertionError('all at once')): store = image_store(tmp_path, 64)
    assert isinstance(store.images, np.memmap) and store.images.shape == (40, 64, 64, 3)


def test_a_store_of_many_files_takes_little_memory(tmp_path):
    "Beside its pixels: under a kilobyte an image, to build and to open again"
    for label in 'ab': (tmp_path/label).mkdir()
    for i in range(4000): Image.new('RGB', (8, 8), (i%256, i//256, 0)).save(tmp_path/'ab'[i%2]/f'{i:06}.bmp')
    def peak():
        tracemalloc.start()
        image_store(tmp_path, 8)
        bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes/4000
    st._verified.clear()
    built, opened = peak(), peak()
    print(f'{built:.0f} bytes an image to build, {opened:.0f} to open')
    assert built < 1000 and opened < 1000


ITEMS = {'array of floats outside': np.full((8, 8, 3), 7.), 'array of int': np.zeros((8, 8, 3), int), 'two channels': np.zeros((8, 8, 2), np.uint8),
    'a number': 3, 'None': None, 'bytes': b'no image', 'missing': 'nowhere.jpg', 'empty': np.zeros((0, 0, 3), np.uint8)}


@pytest.mark.parametrize('what', ITEMS)
def test_items_that_are_no_images(what):
    "One clear line each, from the loader as from `predict`"
    from kd_leaf.data.loaders import store_dls
    dls = store_dls(image_store('synthetic-leaves', 16), device='cpu')
    with pytest.raises(ValueError, match='cannot be read as images') as e: dls.test_dl([ITEMS[what]])
    assert not any(k in str(e.value) for k in ('KeyError', 'TypeError', 'AttributeError', 'IndexError')), str(e.value)


def test_no_invented_labels(tmp_path):
    "Labels by folder give the accuracy that the split gives; without them there are none"
    from kd_leaf.data.loaders import store_dls
    tree(tmp_path, dict(rust=16, scab=12))
    store = image_store(tmp_path, 16)
    dls = store_dls(store, device='cpu')
    files = [tmp_path/store.ids[k] for k in store.where('test')]
    labelled = dls.test_dl(files, with_labels=True)
    assert [int(y) for _, yb in labelled for y in yb] == store.labels[store.where('test')].tolist()
    assert all(len(b) == 1 for b in dls.test_dl(files))
    with pytest.raises(ValueError, match='no label for'): dls.test_dl([shutil.copy(files[0], tmp_path)], with_labels=True)
    with pytest.raises(ValueError, match='no items'): dls.test_dl([])
