"What must hold of all notebooks and modules, and no single notebook can test"
import ast, importlib, inspect, json, re, shutil, subprocess, sys
from pathlib import Path
import nbformat, pytest
from nbclient import NotebookClient
from fastcore.docments import docments
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
TUTORIALS = ['20_tutorial_distill', '21_tutorial_ensemble', '22_tutorial_your_data']
MODULES = sorted(m for m in (ROOT/'kd_leaf').glob('*.py') if not m.name.startswith('_'))


def cells(nb, kind=None): return [c for c in json.loads(nb.read_text())['cells'] if kind in (None, c['cell_type'])]
def source(cell): return ''.join(cell['source'])
def floor(module):
    "Number and letter of the notebook a module comes from, such as '04a'"
    return re.search(r'File to edit: \.\./nbs/(\d+[a-z]?)_', module.read_text())[1]


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The project as git would commit it now"
    dest = tmp_path_factory.mktemp('copy')/'kd_leaf'
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for f in files:
        if (ROOT/f).is_file():
            (dest/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/f, dest/f)
    return dest


def snapshot(root): return {f.relative_to(root).as_posix(): f.read_bytes() for d in ('nbs', 'kd_leaf') for f in (root/d).rglob('*') if f.suffix in ('.py', '.ipynb')}


def test_exported_and_clean(copy):
    before = snapshot(copy)
    for command in ('nbdev-export', 'nbdev-clean'): subprocess.run([str(Path(sys.executable).with_name(command))], cwd=copy, check=True, capture_output=True)
    after = snapshot(copy)
    assert sorted(before) == sorted(after)
    assert [f for f in before if before[f] != after[f]] == []


def test_clean_keeps_the_parameters_tag(copy):
    for name in ('run_all', '30_experiment'):
        tagged = [c for c in cells(copy/'nbs'/f'{name}.ipynb', 'code') if 'parameters' in c['metadata'].get('tags', [])]
        assert len(tagged) == 1, f'{name} has {len(tagged)} cells tagged parameters; papermill would silently run the defaults'
        for line in source(tagged[0]).splitlines(): assert re.fullmatch(r'\w+: \w+ = .+  # .+', line), f'{name}: papermill --help-notebook cannot explain {line!r}'


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_kernelspec(nb):
    spec = json.loads(nb.read_text())['metadata']['kernelspec']
    assert spec['name'] == 'python3' and spec['language'] == 'python'  # papermill needs the language


def test_what_nbdev_test_skips_is_run_elsewhere():
    skipped = {nb.stem for nb in NOTEBOOKS if any('skip_exec: true' in source(c) for c in cells(nb, 'raw'))}
    assert skipped == {'30_experiment', 'run_all'} | set(TUTORIALS)  # .ci/run runs the first two by papermill, the test below the others


@pytest.mark.parametrize('name', TUTORIALS)
def test_tutorial(name, tmp_path, monkeypatch):
    "With an empty cache; each ends with what it promises, by its own assertions"
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path))
    nb = nbformat.read(ROOT/f'nbs/{name}.ipynb', 4)
    NotebookClient(nb, timeout=600, resources=dict(metadata=dict(path=str(tmp_path)))).execute()


@pytest.mark.parametrize('module', MODULES, ids=lambda p: p.stem)
def test_floors(module):
    "A module imports only from modules with a smaller number"
    for node in ast.walk(ast.parse(module.read_text())):  # nbdev writes `from .core import …`
        names = [f'{"kd_leaf." if node.level else ""}{node.module}'] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith('kd_leaf.'): assert floor(ROOT/'kd_leaf'/f'{name.split(".")[1]}.py') < floor(module), f'{module.stem} imports {name}'


def test_floors_sees_imports():
    "The check above is no check if it finds nothing to look at"
    assert 'from .core import' in (ROOT/'kd_leaf/study.py').read_text()


def public(module):
    "Public functions, classes and methods that a module defines"
    mod = importlib.import_module(f'kd_leaf.{module.stem}')
    for name in mod.__all__:
        obj = getattr(mod, name)
        if (inspect.isfunction(obj) or inspect.isclass(obj)) and obj.__module__ == mod.__name__:
            yield name, obj
            if inspect.isclass(obj) and not hasattr(obj, 'learn'):  # the methods of a fastai callback are its events
                yield from ((f'{name}.{k}', v) for k, v in vars(obj).items() if inspect.isfunction(v) and not k.startswith('_') and v.__qualname__.startswith(name))


@pytest.mark.parametrize('module', MODULES, ids=lambda p: p.stem)
def test_docstrings_and_docments(module):
    missing = []
    for name, obj in public(module):
        if not (obj.__doc__ or '').strip() or obj.__doc__.startswith(f'{name}('): missing.append(f'{name}: docstring')
        fields = [k for k in getattr(obj, '__dataclass_fields__', {})] if inspect.isclass(obj) else None
        docs = docments(obj, returns=False)
        if inspect.isclass(obj) and not fields and '__init__' not in vars(obj): continue  # a callback without arguments
        params = fields if fields else [k for k, p in inspect.signature(obj).parameters.items() if k not in ('self', 'cls') and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        missing += [f'{name}: {p}' for p in params if not docs.get(p)]
    assert missing == []


@pytest.mark.parametrize('module', MODULES, ids=lambda p: p.stem)
def test_size(module):
    "Small enough to read: an exported cell of 35 lines at most, a notebook of 80 cells, a module of 330"
    nb = next(n for n in NOTEBOOKS if n.name.startswith(floor(module)+'_'))
    assert len(cells(nb)) <= 80
    for c in cells(nb, 'code'):
        if source(c).startswith('#| export'): assert len([l for l in source(c).splitlines() if l.strip()]) <= 35, source(c)[:80]
    assert len(module.read_text().splitlines()) <= 330


def test_report_imports_no_torch():
    code = "import sys, kd_leaf.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize('nb', [n for n in NOTEBOOKS if n.name[0] == '4'], ids=lambda p: p.stem)
def test_no_number_typed_by_hand(nb):
    for c in cells(nb, 'markdown'):
        text = re.sub(r'\[?\]?\(?(https?://\S+|arXiv:\S+)', '', re.sub(r'```.*?```', '', source(c), flags=re.S))
        assert not re.search(r'\d+\.\d+|\d ?%', text), text
    assert get_config(ROOT).allowed_cell_metadata_keys == ['tags']
