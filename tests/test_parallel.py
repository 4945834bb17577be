"One training by two processes, as a launcher starts them (gloo, on the CPU), and by one process with twice the batch"
import json, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = '''
import contextlib, copy, json, sys
from pathlib import Path
import torch
from fastai.callback.core import Callback
from fastai.torch_core import rank_distrib
from kd_leaf.core import seed_everything
from kd_leaf.data.store import image_store
from kd_leaf.data.views import Views, view_dls
from kd_leaf.distill.cache import cache_teacher
from kd_leaf.distill.callbacks import KDCallback
from kd_leaf.distill.learner import make_learner
from kd_leaf.distill.parallel import parallel

def net(n):  # without batch normalisation, which on CPUs each process does on its own
    layers = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8*7*7, n)
    return torch.nn.Sequential(*layers)

bs, dest = int(sys.argv[1]), Path(sys.argv[2])
seed_everything(0, deterministic=True)
dls = view_dls(image_store('synthetic-leaves', 16), Views(2), bs=bs, epoch_size=128, device='cpu')
teacher, student, out = net(dls.c), net(dls.c), {}
cache = cache_teacher(teacher, dls, dest.with_suffix(f'.{rank_distrib()}'))
for name, cbs in dict(alone=[], taught=[KDCallback(teacher)], cached=[KDCallback(cache)]).items():
    learn = make_learner(dls, copy.deepcopy(student))
    dls.train.rng.seed(7)
    with parallel(learn), learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2, cbs=cbs)
    weight = sum(p.double().abs().sum().item() for p in learn.model.parameters())
    out[name] = [*map(float, learn.recorder.losses), *(v for o in learn.recorder.values for v in o), weight]

class Interrupt(Callback):
    def before_epoch(self):
        if self.epoch: raise KeyboardInterrupt

learn, whole = make_learner(dls, copy.deepcopy(student)), dls.loaders
with contextlib.suppress(KeyboardInterrupt), parallel(learn), learn.no_bar(), learn.no_logging(): learn.fit(3, cbs=Interrupt())
out['left'] = [type(learn.model).__name__, dls.loaders is whole, dls.train.bs, dls.train.shard]
if not rank_distrib(): dest.write_text(json.dumps(out))
'''


def curves(folder, processes, bs):
    "Losses by step, what is logged by epoch and the size of the weights, by kind of training"
    (folder/'train.py').write_text(SCRIPT)
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)] if processes > 1 else []
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    done = subprocess.run([sys.executable, *launcher, 'train.py', str(bs), f'{processes}.json'], cwd=folder, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads((folder/f'{processes}.json').read_text())


@pytest.mark.skipif(sys.platform == 'win32', reason='the launcher of PyTorch for Windows has no libuv')
def test_two_processes_give_the_loss_curve_of_twice_the_batch(tmp_path):
    one, two = curves(tmp_path, 1, 32), curves(tmp_path, 2, 16)
    for name in ('alone', 'taught', 'cached'):
        assert len(two[name]) > 2*128//32
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert two['left'] == ['Sequential', True, 16, [0, 1]]  # after an interrupt the Learner is whole again
    steps = 2*128//32
    assert one['alone'][:steps] != pytest.approx(one['taught'][:steps], rel=1e-2)  # the loss of every step, which would be equal if nothing were taught
