"Studies under fault: records, weights and disks that are not as they should be; the paper's records as they are"
import json, os, shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import pytest
from kd_leaf.core import DiskFull, file_sha256
from kd_leaf.study import files, records, runner, training
from kd_leaf.study.config import Study, load_study, make_runs
from kd_leaf.study.spec import list_studies

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted(f.parent.name for f in ROOT.glob('results/*/runs'))
DATA = os.environ.get('KD_LEAF_DATA', ROOT.parent/'shared/data')


@pytest.fixture
def copy(tmp_path, monkeypatch):
    "The leaf study's records, where they can be spoilt"
    shutil.copytree(ROOT/'results/leaf', tmp_path/'leaf', ignore=shutil.ignore_patterns('tables', 'figures', 'models'))
    monkeypatch.setattr(records, 'results_dir', lambda study, profile: tmp_path/study)
    return tmp_path/'leaf'


def students(folder): return [f for f in sorted(folder.glob('runs/*.json')) if json.loads(f.read_text())['role'] == 'student']
def edit(file, **changes): file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize('study', STUDIES)
def test_all_records_of_the_paper_are_in_the_grid(study):
    "No key has changed, no score differs from its predictions: nothing is left out, and a study that is whole has nothing to do"
    found = [json.loads(f.read_text(encoding='utf-8')) for f in (ROOT/f'results/{study}/runs').glob('*.json')]
    rows, profile = records.table_of(found), found[0]['profile']
    assert records._in_grid(rows, records._keys_in_grid(study, profile, rows), load_study(study, profile).selector)[rows.role != 'pretraining'].all()


@pytest.mark.skipif(not Path(DATA).is_dir(), reason='the real images are not here')
@pytest.mark.parametrize('study', ['leaf', 'views'])
def test_nothing_to_do_with_the_real_images(study, monkeypatch, tmp_path):
    from kd_leaf.data.store import image_store
    monkeypatch.setenv('KD_LEAF_DATA', str(DATA))
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path))
    plan = load_study(study, 'cpu')
    assert files.todo_runs(plan, make_runs(plan, image_store(plan.dataset, plan.size))) == []


@pytest.mark.parametrize('study', sorted(o for o in list_studies() if o != 'long' and not o.endswith('search')))
def test_profile_gpu_is_ten_seeds_and_imagenet(study):
    "Teachers start from ImageNet's weights, but for those that a question is asked of; tools/dry_run.py tries all of it. `long` is what one lent GPU could do"
    plan = load_study(study, 'gpu')
    runs = make_runs(plan, SimpleNamespace(name=plan.dataset, sha256='0'*64))
    from_nothing = {r.model for r in runs if r.role == 'teacher' and r.weights == 'none'}
    asked = dict(roads={'mobilenet_v2', 'mobilenet_v2@weak'}, ablations={'shufflenet_v2_x1_0', 'densenet121@labels'})
    assert plan.seeds == [*range(10)] and from_nothing == asked.get(study, set())
    assert {r.weights for r in runs if r.role == 'teacher'} >= {'imagenet'}


def test_an_edited_score_is_refused(copy):
    edit(students(copy)[0], f1=.99)
    with pytest.raises(ValueError, match=f'{students(copy)[0].name}: f1 is 0.99'): records.load_runs('leaf', 'cpu')


def test_swapped_predictions_are_refused(copy):
    a, b, *_ = (files.preds_path(f) for f in students(copy))
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two), b.write_bytes(one)
    with pytest.raises(ValueError, match='one of them was changed'): records.load_runs('leaf', 'cpu')


def test_records_that_left_the_grid_are_named(copy):
    file = students(copy)[0]
    new = copy/'runs/aaaaaaaaaaaa.json'
    shutil.copy(file, new), shutil.copy(files.preds_path(file), files.preds_path(new))
    edit(new, key='aaaaaaaaaaaa', epochs=99)
    new.write_text(json.dumps({k: v for k, v in json.loads(new.read_text()).items() if k != 'sealed'}))
    before = None
    with pytest.warns(UserWarning, match='not in the grid of leaf.*aaaaaaaaaaaa'): before = records.load_runs('leaf', 'cpu')
    assert 'aaaaaaaaaaaa' not in {*before.key} and len(before) == 48


@pytest.mark.parametrize('field', ['profile', 'role', 'f1', 'vocab', 'alpha'])
def test_a_missing_field_is_named(copy, field):
    file = students(copy)[0]
    record = json.loads(file.read_text()) | dict(preds_sha256=file_sha256(files.preds_path(file)))
    record.pop(field)
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f'{file.name} lacks {field}'): records.load_runs('leaf', 'cpu')


@pytest.mark.parametrize('text, message', [('{"key": ', 'is damaged'), ('[]', 'is no record'), ('{"a": 1}', 'lacks')])
def test_a_foreign_or_truncated_file_is_named(copy, text, message):
    (copy/'runs/notes.json').write_text(text)
    with pytest.raises(ValueError, match=f'notes.json {message}'): records.load_runs('leaf', 'cpu')


@pytest.mark.parametrize('spoil', [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:200]), lambda f: f.write_bytes(b'')])
def test_a_run_without_readable_predictions_is_not_done(copy, spoil):
    study, key = SimpleNamespace(dir=copy), students(copy)[0].stem
    assert files.is_done(study, key)
    spoil(files.preds_path(copy/f'runs/{key}.json'))
    assert not files.is_done(study, key)


def test_larger_images_of_a_teacher_have_the_splits_of_the_store(tmp_path, monkeypatch):
    "Images that were cut by another seed, or without bad files, are opened so for a teacher of its own size, too"
    import numpy as np
    from PIL import Image
    from kd_leaf.data.store import image_store
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))
    for k in range(40):
        file = tmp_path/'mine'/'ab'[k % 2]/f'{k}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (16, 16, 3), np.uint8)).save(file)
    (file.parent/'bad.png').write_bytes(b'no image')
    with pytest.warns(UserWarning, match='left out'): store = image_store(tmp_path/'mine', 16, 'skip', seed=1)
    study = Study('mine', **SMALL | dict(dataset=str(tmp_path/'mine'), size=16, teachers={'cnn4': dict(size=24)}))
    runs = make_runs(study, store)
    with pytest.warns(UserWarning, match='left out'): stores, _ = training.open_images(study, store, runs)
    teacher = next(r for r in runs if r.role == 'teacher')
    assert stores[teacher].size == 24 and stores[teacher].ids == store.ids and (stores[teacher].splits == store.splits).all()
    (tmp_path/'mine/a/0.png').write_bytes((tmp_path/'mine/b/1.png').read_bytes())
    with pytest.raises(ValueError, match='does not hold the images of'), pytest.warns(UserWarning): training.open_images(study, store, runs)


def test_commit_of_the_users_repository_is_not_recorded(monkeypatch, tmp_path):
    "A kd_leaf installed inside another repository has no commit"
    import subprocess
    for k in [k for k in os.environ if k.startswith('GIT_')]: monkeypatch.delenv(k)  # of the hook that runs the tests
    (tmp_path/'venv/kd_leaf').mkdir(parents=True)
    subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)
    subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false', 'commit', '-q', '--allow-empty', '-m', 'x'], check=True)
    monkeypatch.setattr(files.kd_leaf, '__file__', str(tmp_path/'venv/kd_leaf/__init__.py'))
    assert files.code_version.__wrapped__() == dict(commit='', dirty=False)


SMALL = dict(title='small', profile='quick', dataset='synthetic-leaves', size=16, seeds=[0], grid=dict(teachers=['cnn4'], students=['cnn4'], balance=['none']),
             teacher=dict(epochs=1, mode='fp32'), student=dict(epochs=1, fraction=.5, views=1, mode='fp32'), kd=dict(loss='soft_target', temperature=4., alpha=.5))


def test_a_full_disk_stops_at_the_first_run(tmp_path, monkeypatch):
    "Also where the error record cannot be written; and nothing is said but the folder and the remedy"
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(Study, 'dir', property(lambda self: tmp_path/self.name))
    tried = []
    def full(run, *a, **k):
        tried.append(run)
        raise RuntimeError('Error while serializing: I/O error: No space left on device (os error 28)')  # as safetensors says it
    monkeypatch.setattr(runner, 'fit_run', full)
    with pytest.raises(DiskFull, match='free some'): runner.run_study(Study('small', **SMALL), device='cpu')
    assert len(tried) == 1


def test_an_error_record_that_cannot_be_written_hides_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(Study, 'dir', property(lambda self: tmp_path/self.name))
    def refuse(*a): raise OSError('read-only')
    def broken(*a, **k): raise ArithmeticError('the first fault')
    monkeypatch.setattr(runner, 'write_json', refuse), monkeypatch.setattr(runner, 'fit_run', broken)
    with pytest.raises(RuntimeError, match='3 of 3 runs failed(.|\n)*the first fault'): runner.run_study(Study('small', **SMALL), device='cpu')


def test_leftovers_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, 'dir', property(lambda self: tmp_path/self.name))
    study = Study('small', **SMALL)
    (study.dir/'runs').mkdir(parents=True)
    old, new = (study.dir/'runs'/f'.{o}.json.elsewhere.1.1.tmp' for o in 'ab')
    for f in (old, new): f.write_text('half')
    os.utime(old, (0, 0))
    runner._prepare(study, None)
    assert not old.exists() and new.exists()


def test_runs_that_another_profile_has_made_are_in_the_tables(copy, monkeypatch):
    "A key knows no profile: what is on record need not be done again, so it must be shown"
    wider = lambda name, profile='cpu', *args: replace(load_study(name, 'cpu', *args), profile=profile, seeds=[0, 1, 2])
    monkeypatch.setattr(records, 'load_study', wider)
    for f in copy.glob('runs/*.json'):
        if json.loads(f.read_text())['seed'] == 2:
            changed = json.loads(f.read_text()) | dict(profile='gpu')
            f.write_text(json.dumps({k: v for k, v in changed.items() if k != 'sealed'}))
    rows = records.load_runs('leaf', 'gpu')
    assert sorted(set(rows[rows.role == 'student'].seed)) == [0, 1, 2] and set(rows.profile) == {'gpu'}


def test_images_of_a_folder_are_opened_at_the_size_of_the_teacher(tmp_path, monkeypatch):
    "A run knows the name of its images, the study where they are"
    from kd_leaf.data.store import image_store
    from kd_leaf.data.synthetic import draw_leaf
    from PIL import Image
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))
    for disease in ('rust', 'scab'):
        (folder := tmp_path/'my leaves'/disease).mkdir(parents=True)
        for i in range(10): Image.fromarray(draw_leaf(disease, i=i, size=40)).save(folder/f'{i}.png')
    plan = load_study('better_teacher', 'quick', dataset=str(tmp_path/'my leaves'))
    store = image_store(plan.dataset, plan.size)
    runs = make_runs(plan, store)
    own, teachers = training.open_images(plan, store, runs)
    assert {s.size for s in own.values()} == {24, 32} and {s.size for s in teachers.values()} == {32}
    assert all(s.sha256 == store.sha256 for s in [*own.values(), *teachers.values()])
