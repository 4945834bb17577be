"What tables, figures and stored outputs must never do: show a real photograph, break on a class's name, count a run twice, delete a stranger's file"
import ast, json, re, shutil
from pathlib import Path
import numpy as np, pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(n for n in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in n.parts)
DRAWN = {'synthetic-leaves'}  # the only data set of which an image may be shown
OTHER_SOURCES = {'imread', 'untar_data', 'from_folder', 'path_from_kaggle'}  # images that come past a store
PIXELS = {'imshow', 'show_batch', 'show_views', 'show_smote', 'grad_cam_figure', 'show_image', 'show_images', 'show_results', 'plot_top_losses'}
ODD = ['$5_$6', 'a|b', '<b>', '_x_*y*', r'\alpha', '[a](b)', '$', '&amp;', '`c`', '%', '{d}', '~e~']


# --- no real photograph in a stored output

def calls(tree):
    "Name and first argument (a string, or None if it is not one) of every call"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call): continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, 'attr', '')
        first = node.args[0] if node.args else None
        yield name, first.value if isinstance(first, ast.Constant) else ast.unparse(first) if first is not None else None


def tree_of(cell):
    "With `pass` in place of magics"
    return ast.parse(re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', ''.join(cell['source'])))


def has_image(cell):
    data = [o.get('data', {}) for o in cell.get('outputs', [])]
    return any(k.startswith('image/') or (k == 'text/html' and '<img' in ''.join(v)) for d in data for k, v in d.items())


def real_photographs(nb):
    """Cells of a notebook with a stored image whose pixels may be a photograph.

    An image is suspicious if its cell draws pixels (`imshow`, `show_batch`, …). Its notebook may then open stores of drawn leaves
    only, or of folders that it has made itself; a card's name anywhere in the argument, as in a choice by a condition, counts as real."""
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    shows = [c for c in code if has_image(c) and PIXELS & {name for name, _ in calls(tree_of(c))}]
    every = [o for c in code for o in calls(tree_of(c))]
    opened = {arg for name, arg in every if name == 'image_store' and arg not in DRAWN}
    real = {arg for arg in opened if any(c == arg or f"'{c}'" in str(arg) for c in cards())}
    return shows if real or OTHER_SOURCES & {name for name, _ in every} else []


def cards(): return {f.stem for f in (ROOT/'data').glob('*.toml')}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(ROOT/'nbs').as_posix())
def test_stored_outputs_hold_no_photograph(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert [''.join(c['source']) for c in real_photographs(nb)] == []


def cell(source, image=True):
    return dict(cell_type='code', source=source, outputs=[dict(data={'image/png': '…'})] if image else [])


@pytest.mark.parametrize('store', ["image_store('plant-pathology-2021', 96)", "image_store('plant-pathology-2021' if have_images('plant-pathology-2021') else 'synthetic-leaves', 96)"])
def test_the_check_sees_photographs(store):
    "The second is how the leaf page came to hold twelve of them"
    assert real_photographs(dict(cells=[cell(f'store = {store}', False), cell('ax.imshow(store.images[0])')]))
    assert not real_photographs(dict(cells=[cell(f'store = {store}', False), cell('gain_figure(runs)')]))
    assert not real_photographs(dict(cells=[cell("store = image_store('synthetic-leaves', 64)\nax.imshow(store.images[0])")]))


def test_no_image_files_are_tracked_but_figures():
    "Photographs could also come as files: only figures made from records are images in this repository"
    found = [f for d in ('data', 'nbs', 'results', 'tests') for f in (ROOT/d).rglob('*') if f.suffix.lower() in ('.png', '.jpg', '.jpeg', '.gif', '.webp')]
    assert found and [f for f in found if f.parent.name != 'figures' or 'results' not in f.parts] == []


# --- logs of training

@pytest.mark.parametrize('path', sorted((ROOT/'nbs/tutorials').glob('*.ipynb')), ids=lambda p: p.stem)
def test_tutorials_keep_no_raw_logs(path):
    "No progress bar of fastai (raw HTML, or Markdown in a fence), and no warning"
    for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
        for o in c.get('outputs', []):
            text = ''.join(o.get('text', [])) + ''.join(o.get('data', {}).get('text/html', [])) + ''.join(o.get('data', {}).get('text/markdown', []))
            assert not re.search(r'<progress|fastprogress|Warning|^```', text, flags=re.M), text[:200]
            assert o.get('name') != 'stderr', text[:200]


# --- names of classes

@pytest.fixture
def odd_study(tmp_path, monkeypatch):
    "The leaf study's records, on their way to another folder, with classes that look like formulas and markup"
    from kd_leaf.report import figures
    from kd_leaf.study import records
    from kd_leaf.study.records import load_runs
    runs = load_runs('leaf')
    assert len(ODD) == len(records.vocab_of(runs.iloc[0]))
    monkeypatch.setattr(figures, 'vocab_of', lambda run: ODD)
    return runs[(runs.balance == 'none') & (runs.seed == 0)]


def test_class_names_do_not_break_figures(odd_study, tmp_path):
    import matplotlib; matplotlib.use('agg')
    from kd_leaf.report.figures import class_figure, confusion_figure, soft_target_figure
    from kd_leaf.report.tables import best_trio
    trio = best_trio(odd_study)
    drawn = dict(c=class_figure(trio), m=confusion_figure(trio.iloc[1], trio.iloc[2]), s=soft_target_figure(trio.iloc[0]))
    for name, fig in drawn.items():
        for kind in ('svg', 'png'): fig.savefig(tmp_path/f'{name}.{kind}')  # raised ValueError at '$5_$6'
    shown = [o.get_text().replace(r'\$', '$') for o in drawn['s'].axes[0].get_yticklabels()]
    assert shown == ODD


def test_class_names_do_not_break_markdown():
    "pandoc and GitHub's rules read every cell as it was: as plain text, with its columns"
    import pypandoc
    from kd_leaf.report.format import md_table
    text = md_table(pd.DataFrame({'class': ODD, 'F1': '0.30*'}))
    for reader in ('gfm', 'markdown', 'commonmark_x'):
        tree = json.loads(pypandoc.convert_text(text, 'json', reader))
        (table,) = tree['blocks']
        plain = [[flat(c[4]) for c in row[1]] for row in table['c'][4][0][3]]
        assert plain == [[o, '0.30*'] for o in ODD], reader


def flat(blocks):
    "The text of a cell; anything but text and blanks shows as its kind"
    parts = [i for b in blocks for i in b['c']]
    return ''.join(i['c'] if i['t'] == 'Str' else ' ' if i['t'] == 'Space' else f"«{i['t']}»" for i in parts)


# --- tables and files

def run_rows():
    "A teacher, and a student with and without it: from all labels, and from a quarter"
    base = dict(dataset='d', dataset_sha256='0', size=8, epochs=1, balance='none', seed=0, views=4, loss='', temperature=0., alpha=0.)
    student = base | dict(role='student', model='cnn4', teacher='', teacher_key='')
    taught = student | dict(teacher='resnet50', teacher_key='t', loss='soft_target', temperature=4., alpha=.7)
    return pd.DataFrame([student | dict(fraction=1., f1=.5), student | dict(fraction=.25, f1=.2),
                         taught | dict(fraction=1., f1=.6), taught | dict(fraction=.25, f1=.4), taught | dict(fraction=1., f1=.7, temperature=8.)])


def test_gains_counts_a_distilled_run_once():
    from kd_leaf.report.tables import gains
    g = gains(run_rows())
    assert len(g) == 3  # was 5: each student of a quarter of the labels stood beside both baselines
    assert np.allclose(sorted(g.gain), [.1, .2, .2])


def test_write_report_removes_its_own_files_only(tmp_path, monkeypatch):
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    from kd_leaf.report import build
    from kd_leaf.report.format import Table
    table = lambda name: Table(name, name, '', pd.DataFrame(dict(a=[1])), pd.DataFrame(dict(a=['1'])))
    monkeypatch.setattr(build, 'report_dir', lambda *a: tmp_path)
    monkeypatch.setattr(build, 'make_tables', lambda *a: [table(n) for n in names])
    monkeypatch.setattr(build, 'make_figures', lambda *a: {n: plt.figure() for n in names})
    names = ['old', 'kept']
    build.write_report('any')
    (tmp_path/'tables/mine.md').write_text('my notes')
    (tmp_path/'figures/mine.png').write_bytes(b'my figure')
    names = ['kept', 'new']
    build.write_report('any')
    left = {f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob('*') if f.is_file()}
    written = {f'tables/{n}.{k}' for n in names for k in ('md', 'csv')} | {f'figures/{n}.{k}' for n in names for k in ('svg', 'png')}
    assert left == written | {'SHA256SUMS', 'tables/mine.md', 'figures/mine.png'}  # mine.* were deleted before


def test_without_measured_costs_there_is_no_figure_of_them(monkeypatch):
    import matplotlib.pyplot as plt
    from kd_leaf.report import build
    shown = build.make_figures('long_search')
    monkeypatch.setattr(build, 'load_ms', lambda runs: {})  # as where `costs.csv` is missing
    assert {*shown}-{*build.make_figures('long_search')} == {'costs_none'}
    plt.close('all')


@pytest.mark.parametrize('name', ['runs.csv', 'classes.csv', 'tables/teachers.csv', 'tables/teachers.md', 'figures/scores.png'])
def test_a_changed_byte_in_a_report_is_named(name, tmp_path, monkeypatch):
    from kd_leaf.report import build
    folder = tmp_path/'leaf'
    shutil.copytree(ROOT/'results/leaf', folder, ignore=shutil.ignore_patterns('runs', 'preds', 'models'))
    monkeypatch.setattr(build, 'report_dir', lambda *a: folder)
    assert build.check_report('leaf') > 20
    content = bytearray((folder/name).read_bytes())
    content[len(content)//2] ^= 1
    (folder/name).write_bytes(content)
    remedy = 'write_report' if '/' in name else 'take it from the repository'  # a report does not make it
    with pytest.raises(ValueError, match=f'{name} is not as the report left it: {remedy}'): build.check_report('leaf')
    (folder/name).unlink()
    with pytest.raises(ValueError, match=f'{name} is not as the report left it'): build.check_report('leaf')
    (folder/'SHA256SUMS').unlink()
    with pytest.raises(FileNotFoundError, match='writes it anew'): build.check_report('leaf')


def test_a_manifest_cannot_delete_elsewhere(tmp_path):
    from kd_leaf.report.build import _remove_old
    folder = tmp_path/'results'
    folder.mkdir()
    (tmp_path/'precious').write_text('')
    (folder/'runs.csv').write_text('')
    (folder/'SHA256SUMS').write_text('0  ../precious\n0  runs.csv\n0  tables/../runs.csv\nno line of the kind\n')
    _remove_old(folder, [])
    assert (tmp_path/'precious').exists() and (folder/'runs.csv').exists()


def test_one_number_for_the_best_student():
    "The leaf page and the table of all studies name the same student with the same score"
    from kd_leaf.report.tables import best_student
    from kd_leaf.study.records import load_runs
    page, index = (''.join(''.join(o['data'].get('text/markdown', [])) for c in json.loads((ROOT/f'nbs/{n}.ipynb').read_text(encoding='utf-8'))['cells']
                           for o in c.get('outputs', []) if 'data' in o) for n in ('studies/leaf', 'index'))
    f1 = f"{best_student(load_runs('leaf')).f1.mean():.3f}"
    assert f'macro F1 {f1}' in page and re.search(rf'\| leaf .*→ {f1} ', index)


# --- studies that are not whole yet

def test_the_front_page_does_without_a_study_that_is_not_whole(monkeypatch):
    from kd_leaf.report import overview
    from kd_leaf.study.records import load_runs
    shown = ('balls', 'roads')
    studies = [o for o in overview._studies() if o[0] in shown]
    def some(name):
        runs = load_runs(name)
        return runs[runs.role != 'student'] if name == 'balls' else runs[(runs.teacher == '') | (runs.seed > 0)]
    monkeypatch.setattr(overview, '_studies', lambda: studies)
    monkeypatch.setattr(overview, 'load_runs', some)
    with pytest.warns(UserWarning, match='balls is left out until it is finished'): table = overview.overview_table()
    assert list(table.data.study) == ['roads'] and list(table.data.seeds) == [2]


def test_runs_of_other_seeds_are_not_paired():
    from kd_leaf.report.tables import paired_difference
    from kd_leaf.study.records import load_runs, pick
    runs = load_runs('balls')
    alone = pick(runs, role='student', teacher='', balance='none')
    with pytest.raises(ValueError, match=r'seeds \[0, 1\] and \[1, 2\] do not pair'): paired_difference(alone[:2], alone[1:])


def test_variants_with_and_without_a_teacher_in_one_table():
    "Also as the last row, and where remedies for imbalance are shown"
    from kd_leaf.report.ablations import variant_table
    from kd_leaf.study.records import load_runs
    from kd_leaf.study.spec import study_spec
    runs, spec = load_runs('leaf'), study_spec('leaf', 'cpu')
    runs = runs[(runs.model == 'cnn4') & ~runs.teacher.str.contains('+', regex=False) | (runs.role == 'teacher')]
    for variants in ([{'teacher': 'densenet121'}, {'teacher': ''}], [{'balance': 'none', 'teacher': ''}, {'balance': 'none'}]):
        table = variant_table(runs, spec | dict(grid=spec['grid'] | dict(variants=variants)))
        assert len(table.text) == 2 and (table.text.Distilled == '').sum() == 1
