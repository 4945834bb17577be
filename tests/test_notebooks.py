"What must hold of all notebooks and modules, and no single notebook can test"
import ast, importlib, inspect, json, re, subprocess, sys
from pathlib import Path
import nbformat, pytest
from nbclient import NotebookClient
from fastcore.docments import docments
from nbdev.config import get_config
from test_numbers import PAGES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(n for n in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in n.parts)
TUTORIALS = sorted((ROOT/'nbs/tutorials').glob('*.ipynb'))
MODULES = sorted(m for m in (ROOT/'kd_leaf').rglob('*.py') if not m.name.startswith('_'))
FOLDERS = 'core', 'checks', 'devices', 'style', 'data', 'models', 'distill', 'ensemble', 'evaluate', 'study', 'report', 'deploy', 'benchmarks', 'all'  # from the ground up


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


def snapshot(root):
    files = [f for d in ('nbs', 'kd_leaf') for f in (root/d).rglob('*') if f.suffix in ('.py', '.ipynb')]
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in files}


def test_exported_and_clean(copy):
    before = snapshot(copy)
    for command in ('nbdev-export', 'nbdev-clean'):
        subprocess.run([str(Path(sys.executable).with_name(command))], cwd=copy, check=True, capture_output=True)
    after = snapshot(copy)
    assert sorted(before) == sorted(after)
    assert [f for f in before if before[f] != after[f]] == []


def test_clean_keeps_the_parameters_tag(copy):
    for nb in ('run_all', 'studies/experiment'):
        tagged = [c for c in cells(copy/'nbs'/f'{nb}.ipynb', 'code') if 'parameters' in c['metadata'].get('tags', [])]
        assert len(tagged) == 1, f'{nb}: {len(tagged)} cells tagged parameters; papermill would silently run the defaults'
        for line in source(tagged[0]).splitlines():
            assert re.fullmatch(r'\w+: \w+ = .+  # .+', line), f'{nb}: papermill --help-notebook cannot explain {line!r}'
    assert get_config(ROOT).allowed_cell_metadata_keys == ['tags']


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=name)
def test_kernelspec(nb):
    spec = json.loads(nb.read_text())['metadata']['kernelspec']
    assert spec['name'] == 'python3' and spec['language'] == 'python'  # papermill needs the language


def test_what_nbdev_test_skips_is_run_elsewhere():
    "By papermill in .ci/run (run_all runs experiment), or by the test below; no single cell is skipped but those that export or start a program"
    skipped = {name(nb) for nb in NOTEBOOKS if any('skip_exec: true' in source(c) for c in cells(nb, 'raw'))}
    assert skipped == {'studies.experiment', 'run_all', *map(name, TUTORIALS)}
    ci = (ROOT/'.ci/run').read_text(encoding='utf-8')
    assert 'papermill nbs/run_all.ipynb' in ci
    folder, file = (re.search(rf"nbdev-test .*--skip-{kind}-re '(.+?)'", ci)[1] for kind in ('folder', 'file'))
    left_out = {nb for nb in NOTEBOOKS if re.search(file, nb.name) or re.search(folder, nb.parent.name)}
    assert {name(nb) for nb in left_out} == {'studies.experiment', *(page.replace('/', '.') for page in PAGES)}
    codes = [(nb, source(c)) for nb in NOTEBOOKS for c in cells(nb, 'code')]
    not_run = [(name(nb), code) for nb, code in codes if re.search(r'^#\|\s*(eval: false|notest)', code, flags=re.M)]
    assert [(nb, code) for nb, code in not_run if not re.search(r"nbdev_export\(\)|__name__ ?== ?'__main__'", code)] == []


@pytest.mark.parametrize('tutorial', TUTORIALS, ids=name)
def test_tutorial(tutorial, tmp_path, monkeypatch):
    "With an empty cache; each ends with what it promises, by its own assertions"
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path))
    nb = nbformat.read(tutorial, 4)
    NotebookClient(nb, timeout=600, resources=dict(metadata=dict(path=str(tmp_path)))).execute()


@pytest.mark.parametrize('tutorial', TUTORIALS, ids=name)
def test_tutorial_installs_the_package_on_colab_only(tutorial):
    "In the cell that a reader runs first; in the test above it did nothing, since Colab is not there"
    first, *_ = (source(c) for c in cells(tutorial, 'code'))
    assert re.fullmatch(r"import sys\nif 'google.colab' in sys.modules: #.*\n    %pip install -q '?(kd_leaf\[.*)?git\+https://.*", first)


@pytest.mark.parametrize('module', MODULES, ids=name)
def test_floors(module):
    "A folder imports from lower folders only, a module only from earlier modules of its own folder"
    for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
        if not isinstance(node, (ast.Import, ast.ImportFrom)): continue
        level = getattr(node, 'level', 0)
        base = module.parents[level-1] if level else ROOT  # `from ..core import …`, or inside a function `from kd_leaf.core`
        for dotted in [node.module] if isinstance(node, ast.ImportFrom) else [o.name for o in node.names]:
            there = base.joinpath(*dotted.split('.')).with_suffix('.py')
            if there in MODULES: assert floor(there) < floor(module), f'{name(module)} imports {name(there)}'
            else: assert ROOT/'kd_leaf' not in there.parents, f'{name(module)} imports {there}: name the module'


def public(module):
    "Public functions, classes and methods that a module defines"
    mod = importlib.import_module(f'kd_leaf.{name(module)}')
    for k in mod.__all__:
        obj = getattr(mod, k)
        if not (inspect.isfunction(obj) or inspect.isclass(obj)) or obj.__module__ != mod.__name__: continue
        yield k, obj
        if inspect.isfunction(obj) or hasattr(obj, 'learn'): continue  # the methods of a fastai callback are its events
        methods = [(m, v) for m, v in vars(obj).items() if inspect.isfunction(v) and not m.startswith('_')]
        yield from ((f'{k}.{m}', v) for m, v in methods if v.__qualname__.startswith(k))


def parameters(obj):
    "Names of the parameters that `obj` should document"
    if inspect.isclass(obj) and hasattr(obj, '__dataclass_fields__'): return list(inspect.get_annotations(obj))  # its own; a base documents its
    if inspect.isclass(obj) and '__init__' not in vars(obj): return []  # a callback without arguments
    params = inspect.signature(obj).parameters.items()
    return [k for k, p in params if k not in ('self', 'cls') and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


@pytest.mark.parametrize('module', MODULES, ids=name)
def test_docstrings_and_docments(module):
    missing = []
    for k, obj in public(module):
        if not (obj.__doc__ or '').strip() or obj.__doc__.startswith(f'{k}('): missing.append(f'{k}: docstring')
        docs = docments(obj, returns=False)
        missing += [f'{k}: {p}' for p in parameters(obj) if not docs.get(p)]
    assert missing == []


@pytest.mark.parametrize('module', MODULES, ids=name)
def test_module_is_small(module):
    assert len(module.read_text(encoding='utf-8').splitlines()) <= 250


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=name)
def test_notebook_is_small(nb):
    "80 cells; lines of code of 120 characters, exported cells of 30 lines"
    assert len(cells(nb)) <= 80
    codes = [source(c) for c in cells(nb, 'code')]
    assert [l for code in codes for l in code.splitlines() if len(l) > 120] == []
    exported = [code for code in codes if re.search(r'^#\|\s*export', code, flags=re.M)]
    assert [code[:80] for code in exported if len([l for l in code.splitlines() if l.strip()]) > 30] == []


def shown(output):
    "What a reader of the notebook sees of an output, images aside"
    texts = [v for k, v in output.get('data', {}).items() if not k.startswith('image/')]
    return '\n'.join(''.join(t) for t in [*texts, output.get('text', ''), output.get('evalue', '')])


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=name)
def test_stored_outputs_are_fit_to_be_seen(nb):
    "No errors, warnings or escape codes, no paths of the machine that ran the notebook"
    outputs = [o for c in cells(nb, 'code') for o in c['outputs']]
    assert [o['ename'] for o in outputs if o['output_type'] == 'error'] == []
    unfit = re.compile(r'\w+Warning: |\x1b\[|(?<![\w.])/(root|work|home|tmp|Users)/|[A-Z]:\\\\')
    assert [m[0] for o in outputs for m in unfit.finditer(shown(o))] == []
    assert [o['text'] for o in outputs if o.get('name') == 'stderr'] == []


def test_report_imports_no_torch():
    code = "import sys, kd_leaf.report.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=name)
def test_a_caption_has_its_figure(nb):
    for c in cells(nb, 'code'):
        if '#| fig-cap' in source(c): assert any('image/png' in o.get('data', {}) for o in c['outputs']), source(c)


@pytest.mark.parametrize('nb', sorted((ROOT/'nbs/studies').glob('*.ipynb')), ids=name)
def test_no_number_typed_by_hand(nb):
    for c in cells(nb, 'markdown'):
        text = re.sub(r'\[?\]?\(?(https?://\S+|arXiv:\S+)', '', re.sub(r'```.*?```', '', source(c), flags=re.S))
        assert not re.search(r'\d+\.\d+|\d ?%', text), text
