"The page that `make_page` writes, in a real browser: same answers as onnxruntime in Python, fast, silent, and with itself alone"
import functools, http.server, json, shutil, threading, time
from urllib.parse import urlsplit
import numpy as np, pytest
from PIL import Image

pytest.importorskip('onnxruntime', reason="needs pip install 'kd_leaf[deploy]'")
webdriver = pytest.importorskip('selenium.webdriver', reason='needs selenium')
from selenium.webdriver.support.ui import WebDriverWait
BROWSER, DRIVER = (next(filter(None, map(shutil.which, names)), None) for names in (('chromium', 'google-chrome', 'chromium-browser'), ('chromedriver',)))
if not (BROWSER and DRIVER): pytest.skip('no chromium with chromedriver here: apt-get install chromium chromium-driver', allow_module_level=True)

from kd_leaf.core import seed_everything
from kd_leaf.data.loaders import store_dls
from kd_leaf.data.store import image_store
from kd_leaf.data.synthetic import draw_leaf, lesions
from kd_leaf.deploy.calibrate import calibrate_onnx
from kd_leaf.deploy.export import export_onnx
from kd_leaf.deploy.page import make_page, web_runtime
from kd_leaf.deploy.quantize import quantize_onnx
from kd_leaf.deploy.runtime import OnnxClassifier, read_image
from kd_leaf.distill.learner import make_learner
from kd_leaf.ensemble.model import Ensemble

N = 50
LATER_MS, FIRST_S, ONCE_MS = 150, 3, 1500  # the median of many images, the first, and a single one beside other work


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "Fifty drawn leaves as files, an int8 student and an ensemble trained for seconds, and their pages"
    try: web_runtime()
    except RuntimeError as e: pytest.skip(str(e))
    d = tmp_path_factory.mktemp('page')
    rng = np.random.default_rng(0)
    for k in range(N):
        im = Image.fromarray(draw_leaf(list(lesions)[k % 6], seed=11, i=k, size=160))
        w, h = rng.integers(97, 161, 2)
        im = im.crop((0, 0, w, h))
        if k % 5 == 4: im.save(d/f'{k:02}.jpg', quality=92)
        else: im.save(d/f'{k:02}.png')
    store = image_store(size=48)
    seed_everything(0)
    learns = [make_learner(store_dls(store, bs=16, device='cpu'), 'cnn4', precision='fp32_cl') for _ in range(2)]
    for learn in learns:
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 3e-3)
    train, valid = store.where('train'), store.where('valid')
    export_onnx(learns[0], d/'fp32.onnx', name='cnn4', licence='Apache-2.0', data='drawn leaves', scores=dict(accuracy=.5))
    quantize_onnx(d/'fp32.onnx', d/'student.onnx', store.images[train[:64]], store.images[valid], store.labels[valid])
    calibrate_onnx(d/'student.onnx', store.images[valid], store.labels[valid], right=1.)
    export_onnx(Ensemble(learns, vocab=store.vocab, size=48, names=['cnn4', 'cnn4']), d/'pair.onnx')
    for name in ('student', 'pair'): make_page(d/f'{name}.onnx', dest=d/f'{name}.html')
    return d


@pytest.fixture(scope='module')
def server(work):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=work)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


@pytest.fixture
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for o in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--window-size=1280,900'): options.add_argument(o)
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def ask(browser, file, until=30):
    "Give the page a file by its input, wait for the answer: probabilities by class, milliseconds"
    browser.execute_script("document.getElementById('ms')?.removeAttribute('id')")
    browser.find_element('id', 'file').send_keys(str(file))
    end = time.monotonic()+until
    while time.monotonic() < end:
        if ms := browser.find_elements('id', 'ms'):
            rows = browser.execute_script("return [...document.querySelectorAll('#classes li')].map(o => [o.querySelector('span').textContent, +o.querySelector('data').value])")
            return dict(rows), float(ms[0].get_attribute('value'))
        time.sleep(.02)
    raise AssertionError(f"no answer in {until} s: {browser.find_element('id', 'answer').text}; {browser.get_log('browser')}")


def complaints(browser): return [o['message'] for o in browser.get_log('browser') if o['level'] in ('SEVERE', 'WARNING')]


def hosts(browser):
    "Hosts that anything was requested from, by the browser's own log"
    events = [json.loads(o['message'])['message'] for o in browser.get_log('performance')]
    urls = [o['params']['request']['url'] for o in events if o['method'] == 'Network.requestWillBeSent']
    return {urlsplit(u).netloc for u in urls if urlsplit(u).scheme not in ('data', 'blob', 'file')}


@pytest.mark.parametrize('where', ['disk', 'server'])
def test_page_answers_as_python_does(work, server, browser, where):
    expected = OnnxClassifier(work/'student.onnx')
    images = sorted([*work.glob('[0-9][0-9].png'), *work.glob('[0-9][0-9].jpg')])
    assert len(images) == N
    browser.get((work/'student.html').as_uri() if where == 'disk' else f'{server}/student.html')  # until it has loaded
    start = time.monotonic()
    same, off, times = 0, [], []
    for k, f in enumerate(images):
        said, ms = ask(browser, f)
        if not k: first = time.monotonic()-start
        p = dict(zip([o.replace('_', ' ') for o in expected.vocab], expected.probabilities(read_image(f)[None])[0]))
        same += max(said, key=said.get) == max(p, key=p.get)
        off.append(max(abs(said[o]-p[o]) for o in p))
        times.append(ms)
    print(f'{where}: first {first:.2f} s, later median {np.median(times):.1f} ms, largest {max(times[1:]):.1f} ms, '
          f'same top-1 {same} of {N}, probabilities within {max(off):.4f}')
    assert same >= N-1 and max(off) <= .02
    assert first <= FIRST_S and np.median(times[1:]) <= LATER_MS
    assert complaints(browser) == []
    assert hosts(browser) <= {urlsplit(server).netloc}


def test_demo_of_the_released_student(work, browser):
    "The page that the site offers: its examples, one after the other, as Python answers them"
    from kd_leaf.deploy.page import drawn_examples
    from kd_leaf.deploy.released import released_onnx
    released = released_onnx()
    browser.get(make_page(released, dest=work/'demo.html').as_uri())
    for name, image in drawn_examples(released.vocab):
        Image.fromarray(image).save(work/'example.png')
        said, ms = ask(browser, work/'example.png')
        p = released.predict(image)
        assert max(said, key=said.get) == p.name.replace('_', ' ') and abs(max(said.values())-p.probabilities.max()) <= .02, name
        assert (browser.find_element('css selector', '#answer .name').text == 'Not sure') == (not p.sure)
        assert ms <= ONCE_MS
    assert complaints(browser) == [] and hosts(browser) == set()


def test_not_sure_and_bad_files(work, browser):
    "Below the threshold the heading says so; what is no image gets one line, and the page goes on"
    browser.get((work/'student.html').as_uri())
    threshold = OnnxClassifier(work/'student.onnx').threshold
    seen = set()
    for f in sorted(work.glob('*.png'))[:12]:
        said, _ = ask(browser, f)
        unsure = browser.find_element('css selector', '#answer .name').text == 'Not sure'
        assert unsure == (max(said.values()) < threshold)
        seen.add(unsure)
    assert seen == {True, False}, 'these leaves do not show both'
    (work/'notes.txt').write_text('not an image')
    browser.find_element('id', 'file').send_keys(str(work/'notes.txt'))
    said = 'notes.txt cannot be read as an image: choose a JPEG or a PNG.'
    WebDriverWait(browser, 20).until(lambda b: b.find_element('id', 'answer').text == said)
    ask(browser, next(work.glob('*.png')))


def test_votes_of_an_ensemble(work, browser):
    browser.get((work/'pair.html').as_uri())
    f = work/'00.png'
    ask(browser, f)
    pair = OnnxClassifier(work/'pair.onnx')
    votes = pair.members(read_image(f)[None])[0]
    rows = [o.text for o in browser.find_elements('css selector', '#votes tbody tr')]
    assert len(rows) == 2
    for row, p in zip(rows, votes): assert pair.vocab[p.argmax()].replace('_', ' ') in row


def test_large_and_turned_photographs(work, browser):
    "A photograph of 12 megapixels that EXIF turns, and one with a colour profile: the page sees what Python sees"
    leaf = Image.fromarray(draw_leaf('rust', seed=11, size=500)).resize((4000, 4000), Image.BICUBIC).crop((0, 0, 4000, 3000))
    exif = leaf.getexif(); exif[0x0112] = 6
    leaf.save(work/'large.jpeg', exif=exif, quality=90)
    browser.get((work/'student.html').as_uri())
    said, ms = ask(browser, work/'large.jpeg')
    expected = OnnxClassifier(work/'student.onnx')
    p = dict(zip([o.replace('_', ' ') for o in expected.vocab], expected.probabilities(read_image(work/'large.jpeg')[None])[0]))
    assert max(abs(said[o]-p[o]) for o in p) <= .05, (said, p)
    assert ms <= ONCE_MS


def test_ways_in_and_accessibility(work, browser):
    "Examples by keyboard, an image by paste and by drop; names for everything that takes the focus; nothing wider than a phone"
    browser.get((work/'student.html').as_uri())
    example = browser.find_element('css selector', '#examples button')
    example.send_keys(webdriver.Keys.ENTER)
    for _ in range(100):
        if browser.find_elements('id', 'ms'): break
        time.sleep(.1)
    assert 'drawn' in browser.find_element('id', 'preview').get_attribute('alt')
    send = '''
const kind = arguments[0], done = arguments[1]
document.getElementById('ms').removeAttribute('id')
const canvas = Object.assign(document.createElement('canvas'), {width: 90, height: 120})
canvas.getContext('2d').fillRect(10, 10, 50, 80)
canvas.toBlob(blob => {
  const transfer = new DataTransfer()
  transfer.items.add(new File([blob], 'sent.png', {type: 'image/png'}))
  dispatchEvent(kind === 'paste' ? new ClipboardEvent('paste', {clipboardData: transfer}) : new DragEvent('drop', {dataTransfer: transfer}))
  const timer = setInterval(() => { if (document.getElementById('ms')) { clearInterval(timer); done(document.getElementById('preview').alt) } }, 20)
})'''
    assert browser.execute_async_script(send, 'paste') == 'Chosen image: sent.png'.replace('sent.png', 'pasted')
    assert browser.execute_async_script(send, 'drop') == 'Chosen image: sent.png'
    nameless = browser.execute_script('''return [...document.querySelectorAll('button, input, img:not([hidden]), summary, meter')].filter(o =>
        !(o.ariaLabel || o.alt || o.textContent.trim() || o.labels?.[0]?.textContent.trim() || o.querySelector?.('img')?.alt)).map(o => o.outerHTML)''')
    assert nameless == []
    assert browser.find_element('id', 'answer').get_attribute('aria-live') == 'polite'
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=390, height=844, deviceScaleFactor=2, mobile=True))
    assert browser.execute_script('return document.documentElement.scrollWidth') <= 390
    assert complaints(browser) == []
