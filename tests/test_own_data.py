"A data set that nobody here has seen goes from folder to tables with one papermill command; a bad one is refused before anything is trained"
import os, shutil, subprocess
import numpy as np, pandas as pd
import pytest
from PIL import Image
from test_resume import PAPERMILL, project

CLASSES = {'Röhre (lang)': (180, 60, 40), '$5_$6': (60, 160, 70), 'Ωmega_2': (60, 70, 190)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Class folders as people have them: no splits, odd names, other sizes, modes and file types, a note among the images"
    root, rng = tmp_path_factory.mktemp('own')/'my shapes', np.random.default_rng(0)
    for (name, colour), n in zip(CLASSES.items(), (30, 18, 10)):
        (root/name).mkdir(parents=True)
        for i in range(n):
            im = Image.fromarray(np.clip(rng.normal(colour, 60, (*rng.integers(20, 70, 2), 3)), 0, 255).astype('uint8'))
            kind, mode = [('jpg', 'RGB'), ('PNG', 'RGBA'), ('jpeg', 'L'), ('png', 'P')][i % 4]
            im.convert(mode).save(root/name/f'{i} a.{kind}')
    (root/'notes.txt').write_text('collected in spring')
    return root


@pytest.fixture(scope='module')
def root(tmp_path_factory): return project(tmp_path_factory.mktemp('own_project')/'p')


def experiment(root, dataset, study='brain_tumour'):
    env = {k: v for k, v in os.environ.items() if not k.startswith('KD_LEAF')} | dict(PYTHONPATH=str(root), KD_LEAF_CACHE=str(root/'cache'))
    return subprocess.run([PAPERMILL, 'nbs/studies/experiment.ipynb', 'out.ipynb', '-p', 'study', study, '-p', 'profile', 'quick', '-p', 'dataset', str(dataset)],
                          cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_from_folder_to_tables(root, folder):
    p = experiment(root, folder)
    assert p.returncode == 0, p.stderr
    out = root/'results_quick/brain_tumour@my shapes'
    df = pd.read_csv(out/'runs.csv')
    assert sorted(df.role) == ['student', 'student', 'teacher'] and set(df.dataset) == {'my shapes'}
    assert {f.stem for f in (out/'tables').glob('*.md')} == {'teachers', 'efficientnet_b0_none', 'calibration'}
    caption = (out/'tables/efficientnet_b0_none.md').read_text()
    assert 'my shapes' in caption and 'far too few' in caption
    counts = pd.read_csv(out/'classes.csv').set_index('class')
    assert counts.sum(axis=1).to_dict() == dict(zip(CLASSES, (30, 18, 10)))
    assert all(len(np.load(out/f'preds/{k}.npz')['test_targets']) == counts.test.sum() for k in df.key)
    made = {f.stem for f in (out/'figures').glob('*.svg')}
    assert {'gain', 'confusion', 'soft_targets'} <= made  # a class of dollar signs is no formula


PAIR = '''
name = "pair"
title = "Two students"
dataset = "synthetic-leaves"
grid = {teachers = ["resnet18"], students = ["cnn4", "shufflenet_v2_x0_5"], balance = ["none"]}
teacher = {epochs = 1, bs = 16, mode = "fp32"}
student = {epochs = 1, bs = 16, views = 1, mode = "fp32"}
kd = {loss = "soft_target", temperature = 4.0, alpha = 0.7}
selector = {epochs = 1}
[profile.quick]
size = 32
seeds = [0]
'''


def test_a_rare_class_costs_one_row_and_no_table(root, folder):
    "With one picture of a class in valid there is no stacking; all the rest is there, and the table says so"
    (root/'studies').mkdir()
    (root/'studies/pair.toml').write_text(PAIR)
    p = experiment(root, folder, 'pair')
    assert p.returncode == 0, p.stderr
    out = root/'results_quick/pair@my shapes'
    assert pd.read_csv(out/'classes.csv').valid.min() == 1
    names = pd.read_csv(out/'tables/ensembles_none.csv').name.tolist()
    assert {'mean', 'weighted', 'hard router', 'oracle'} <= {*names} and 'stacking' not in names
    assert 'too few images for stacking' in (out/'tables/ensembles_none.md').read_text()


def test_a_bad_folder_stops_at_once(root, folder, tmp_path):
    "What else can be wrong with one is in tests/test_data.py; here is what papermill says in the end"
    bad = tmp_path/'bad'
    shutil.copytree(folder, bad)
    (bad/'$5_$6/broken.jpg').write_bytes(b'no image')
    p = experiment(root, bad)
    assert p.returncode != 0 and 'broken.jpg' in p.stderr
    assert not list(root.glob('results_quick/brain_tumour@bad/runs/*'))
