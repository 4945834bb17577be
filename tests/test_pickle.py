"A pickle can run anything when it is read, so none is: not by the code as it stands, and not while it works"
import ast, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
READERS = {'loads', 'load', 'Unpickler', 'read_pickle', 'load_learner', 'open'}  # of what can hold a pickle, by the modules below
MODULES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve'}


def unsafe_calls(tree):
    "Lines that read a pickle, or may do so"
    for node in (o for o in ast.walk(tree) if isinstance(o, ast.Call)):
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        module, _, function = name.rpartition('.')
        if (module in MODULES and function in READERS or function in ('read_pickle', 'load_learner')
                or name == 'torch.load' and given.get('weights_only') != 'True' or given.get('allow_pickle') == 'True'): yield f'{node.lineno}: {name}'


@pytest.mark.parametrize('code', ['pickle.load(f)', 'torch.load(f)', 'torch.load(f, weights_only=False)', 'np.load(f, allow_pickle=True)', 'joblib.load(f)',
    'pd.read_pickle(f)', 'load_learner(f)'])
def test_what_is_unsafe_is_seen(code): assert len([*unsafe_calls(ast.parse(code))]) == 1


def test_no_module_reads_a_pickle():
    found = {f.name: [*unsafe_calls(ast.parse(f.read_text()))] for folder in ('kd_leaf', 'tools') for f in sorted((ROOT/folder).rglob('*.py'))}
    assert len(found) > 50 and {k: v for k, v in found.items() if v} == {}


GUARDED = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import json, os, pickle, numpy as np, torch, work
from collections import OrderedDict
from pathlib import Path
import kd_leaf.all, kd_leaf.report.build, kd_leaf.deploy.export, kd_leaf.deploy.quantize, kd_leaf.deploy.released, kd_leaf.study.runner

class Pickle(Exception): "A pickle named something to be called"

def guard(event, args):
    if event == 'pickle.find_class' and armed: raise Pickle(f'{args[0]}.{args[1]}')

armed = []
sys.addaudithook(guard)
sent = pickle.dumps(OrderedDict)
armed.append(True)
try: pickle.loads(sent)
except Pickle: print('the guard works')

folder = Path(sys.argv[3])
work.prepare(folder)
work.do(folder, 'serial', '', None)
again = kd_leaf.study.runner.run_study(kd_leaf.study.config.load_study('drill', 'quick'), device='cpu', engine='serial') # read from disk
names = ['cnn4', 'shufflenet_v2_x0_5']
ensemble = kd_leaf.ensemble.model.Ensemble([kd_leaf.models.zoo.create_model(o, 2) for o in names], names=names, vocab=['rust', 'scab'], size=16)
ensemble.save(folder/'ensemble')
kd_leaf.ensemble.model.load_ensemble(folder/'ensemble')
kd_leaf.deploy.runtime.OnnxClassifier(folder/'student.onnx')
os.chdir(sys.argv[1])
kd_leaf.deploy.released.load_released()
print(len(again), 'runs')
"""


def test_nothing_that_works_reads_a_pickle(tmp_path):
    "Store, teachers, caches, students, records, tables, an ONNX file, an ensemble, a released network: made, and read back, under guard"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', GUARDED, str(ROOT), str(ROOT/'tests/drills'), str(tmp_path/'work')],
                         capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.startswith('the guard works') and out.stdout.split()[-1] == 'runs' and int(out.stdout.split()[-2]) == 6
