"What must hold of all notebooks and modules, and no single notebook can test"
import ast, importlib, inspect, json, re, shutil, subprocess, sys
from pathlib import Path
import nbformat, pytest
from nbclient import NotebookClient
from fastcore.docments import docments
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(n for n in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in n.parts)
TUTORIALS = sorted((ROOT/'nbs/tutorials').glob('*.ipynb'))
MODULES = sorted(m for m in (ROOT/'kd_leaf').rglob('*.py') if not m.name.startswith('_'))
FOLDERS = 'core', 'data', 'models', 'distill', 'ensemble', 'evaluate', 'study', 'report', 'deploy', 'benchmarks', 'all'  # from the ground up


def cells(nb, kind=None): return [c for c in json.loads(nb.read_text())['cells'] if kind in (None, c['cell_type'])]
def source(cell): return ''.join(cell['source'])
def name(path):
    "Dotted name of a notebook or module, such as 'data.store' or 'studies.leaf'"
    parts = path.relative_to(ROOT/('nbs' if path.suffix == '.ipynb' else 'kd_leaf')).with_suffix('').parts
    return '.'.join(parts)


def notebook(module):
    "The notebook that exports a module"
    return (module.parent/re.search(r'File to edit: (\S+\.ipynb)', module.read_text(encoding='utf-8'))[1]).resolve()


def floor(module):
    "Where a module stands: its folder's place from the ground up, then its number among the notebooks of the folder"
    return FOLDERS.index(name(module).split('.')[0]), notebook(module).name


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
    for nb in ('run_all', 'studies/experiment'):
        tagged = [c for c in cells(copy/'nbs'/f'{nb}.ipynb', 'code') if 'parameters' in c['metadata'].get('tags', [])]
        assert len(tagged) == 1, f'{nb} has {len(tagged)} cells tagged parameters; papermill would silently run the defaults'
        for line in source(tagged[0]).splitlines(): assert re.fullmatch(r'\w+: \w+ = .+  # .+', line), f'{nb}: papermill --help-notebook cannot explain {line!r}'


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=name)
def test_kernelspec(nb):
    spec = json.loads(nb.read_text())['metadata']['kernelspec']
    assert spec['name'] == 'python3' and spec['language'] == 'python'  # papermill needs the language


def test_what_nbdev_test_skips_is_run_elsewhere():
    skipped = {name(nb) for nb in NOTEBOOKS if any('skip_exec: true' in source(c) for c in cells(nb, 'raw'))}
    assert skipped == {'studies.experiment', 'run_all', *map(name, TUTORIALS)}  # .ci/run runs the first two by papermill, the test below the others


@pytest.mark.parametrize('tutorial', TUTORIALS, ids=name)
def test_tutorial(tutorial, tmp_path, monkeypatch):
    "With an empty cache; each ends with what it promises, by its own assertions"
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path))
    nb = nbformat.read(tutorial, 4)
    NotebookClient(nb, timeout=600, resources=dict(metadata=dict(path=str(tmp_path)))).execute()


@pytest.mark.parametrize('module', MODULES, ids=name)
def test_floors(module):
    "A folder imports from lower folders only, a module only from earlier modules of its own folder"
    for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:  # nbdev writes `from ..core import …`
            base = module.parents[node.level-1]
            assert floor(base.joinpath(*node.module.split('.')).with_suffix('.py')) < floor(module), f'{name(module)} imports {node.module}'


def test_floors_sees_imports():
    "The check above is no check if it finds nothing to look at"
    assert 'from ..core import' in (ROOT/'kd_leaf/study/runner.py').read_text(encoding='utf-8')


def public(module):
    "Public functions, classes and methods that a module defines"
    mod = importlib.import_module(f'kd_leaf.{name(module)}')
    for k in mod.__all__:
        obj = getattr(mod, k)
        if (inspect.isfunction(obj) or inspect.isclass(obj)) and obj.__module__ == mod.__name__:
            yield k, obj
            if inspect.isclass(obj) and not hasattr(obj, 'learn'):  # the methods of a fastai callback are its events
                yield from ((f'{k}.{m}', v) for m, v in vars(obj).items() if inspect.isfunction(v) and not m.startswith('_') and v.__qualname__.startswith(k))


@pytest.mark.parametrize('module', MODULES, ids=name)
def test_docstrings_and_docments(module):
    missing = []
    for k, obj in public(module):
        if not (obj.__doc__ or '').strip() or obj.__doc__.startswith(f'{k}('): missing.append(f'{k}: docstring')
        fields = list(getattr(obj, '__dataclass_fields__', {})) if inspect.isclass(obj) else None
        docs = docments(obj, returns=False)
        if inspect.isclass(obj) and not fields and '__init__' not in vars(obj): continue  # a callback without arguments
        params = fields if fields else [k for k, p in inspect.signature(obj).parameters.items() if k not in ('self', 'cls') and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        missing += [f'{k}: {p}' for p in params if not docs.get(p)]
    assert missing == []


@pytest.mark.parametrize('module', MODULES, ids=name)
def test_size(module):
    "Small enough to read: a notebook of 80 cells, a module of 250 lines, an exported cell of 30, a line of 120 characters"
    nb = notebook(module)
    assert len(cells(nb)) <= 80
    for c in cells(nb, 'code'):
        if source(c).startswith('#| export'): assert len([l for l in source(c).splitlines() if l.strip()]) <= 30, source(c)[:80]
    lines = module.read_text(encoding='utf-8').splitlines()
    assert len(lines) <= 250
    assert [l for l in lines if len(l) > 120] == []


def test_report_imports_no_torch():
    code = "import sys, kd_leaf.report.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize('nb', sorted((ROOT/'nbs/studies').glob('*.ipynb')), ids=name)
def test_no_number_typed_by_hand(nb):
    for c in cells(nb, 'markdown'):
        text = re.sub(r'\[?\]?\(?(https?://\S+|arXiv:\S+)', '', re.sub(r'```.*?```', '', source(c), flags=re.S))
        assert not re.search(r'\d+\.\d+|\d ?%', text), text
    assert get_config(ROOT).allowed_cell_metadata_keys == ['tags']
