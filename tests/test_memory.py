"Memory, measured in processes of their own: of a plan for many images, and of a cached student"
import json, os, subprocess, sys
import pytest

linux = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
STORE = """
import json, sys, time
import numpy as np
from kd_leaf.study.files import peak_rss_mb

class Store:
    "Images in a sparse file, which takes no room on disk"
    def __init__(self, folder, n, size, share):
        self.images = np.lib.format.open_memmap(f'{folder}/images.npy', 'w+', np.uint8, (n, size, size, 3))
        self.vocab, self.size, self.name, self.sha256, self.synthetic = list('abcdefghijkl')[:len(share)], size, 'many', 'x', True
        self.labels = np.random.default_rng(0).choice(len(share), n, p=np.array(share)/sum(share))
        self.splits, self.ids = np.array(['train', 'train', 'train', 'train', 'valid', 'test']*n)[:n], [f'{k}.png' for k in range(n)]
    def __len__(self): return len(self.labels)
    def where(self, split): return np.flatnonzero(self.splits == split)
"""


def measure(code, *args):
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', STORE+code, *map(str, args)], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='2'))
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


@linux
def test_smote_plan_for_50_000_images(tmp_path):
    "Of 224 px, twelve to one imbalanced, neighbours among 1,024 features: under 2 GB, in minutes"
    got = measure("""
from kd_leaf.data.resampling import smote
store = Store(sys.argv[1], 75_000, 224, [12, 8, 6, 5, 4, 3, 3, 2, 2, 1, 1, 1])
features = np.random.default_rng(1).normal(size=(len(store), 1024)).astype(np.float32)
start = time.perf_counter()
plan = smote(store, store.where('train'), features=features)
counts = np.bincount(store.labels[plan.i])
print(json.dumps(dict(seconds=time.perf_counter()-start, mb=peak_rss_mb(), real=len(plan)-plan.n_synthetic, counts=[int(counts.min()), int(counts.max())], bytes=plan.nbytes/len(plan))))
""", tmp_path)
    print(got)
    assert got['real'] == 50_000 and got['counts'][0] == got['counts'][1] and got['bytes'] == 12
    assert got['mb'] < 2000 and got['seconds'] < 300


@linux
def test_cached_student(tmp_path):
    "At the leaf study's size: under 1.5 GB, and four times the images take no more memory than their file"
    def student(n):
        (tmp_path/str(n)).mkdir()
        return measure("""
from fastai.basics import CrossEntropyLossFlat, Learner
from kd_leaf.distill.cache import cache_teacher
from kd_leaf.distill.callbacks import KDCallback
from kd_leaf.data.loaders import SamplePlan
from kd_leaf.models.zoo import create_model
from kd_leaf.data.views import Views, view_dls
store = Store(sys.argv[1], int(sys.argv[2]), 96, [1]*12)
dls = view_dls(store, Views(n=1), bs=32, epoch_size=320, device='cpu')
cache = cache_teacher(create_model('densenet121', 12), dls, sys.argv[1]+'/cache', precision='fp32_cl')
learn = Learner(dls, create_model('cnn4', 12), loss_func=CrossEntropyLossFlat(), cbs=KDCallback(cache))
with learn.no_bar(), learn.no_logging(): learn.fit(1)
print(json.dumps(dict(mb=peak_rss_mb(), file=store.images.nbytes/2**20)))
""", tmp_path/str(n), n)
    few, many = student(250), student(1000)
    print(few, many)
    assert many['mb'] < 1.5*1024
    assert many['mb']-few['mb'] < many['file']-few['file']+100
