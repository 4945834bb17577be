"The wheel, built from the sdist, works outside the repository"
import configparser, os, subprocess, sys, zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp('dist')
    subprocess.run([sys.executable, '-m', 'build', '--outdir', str(out), str(ROOT)], check=True, capture_output=True)  # sdist, then the wheel from it
    return next(out.glob('*.whl'))


def test_wheel_holds_cards_and_studies(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for f in [*(ROOT/'data').glob('*.toml')]: assert f'kd_leaf/cards/{f.name}' in names
    for f in [*(ROOT/'nbs/studies').glob('*.toml')]: assert f'kd_leaf/studies/{f.name}' in names
    assert not [n for n in names if n.endswith(('.jpg', '.png', '.zip'))]


def test_wheel_requirements_come_from_settings(wheel):
    meta = next(zipfile.ZipFile(wheel).read(n).decode() for n in zipfile.ZipFile(wheel).namelist() if n.endswith('METADATA'))
    cfg = configparser.ConfigParser()
    cfg.read(ROOT/'settings.ini')
    for r in cfg['DEFAULT']['requirements'].split(): assert f'Requires-Dist: {r}' in meta
    for r in cfg['DEFAULT']['dev_requirements'].split(): assert f'Requires-Dist: {r}; extra == "dev"' in meta


def test_wheel_works_outside_the_repository(wheel, tmp_path):
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(tmp_path/'site'), str(wheel)], check=True)
    code = '''
import kd_leaf, pathlib
from kd_leaf.distill.callbacks import KDCallback
from kd_leaf.data.store import image_store
from kd_leaf.data.cards import list_cards
from kd_leaf.study.config import load_study
from kd_leaf.core import project_root
assert len(list_cards()) >= 5 and load_study("leaf").grid["students"]
assert project_root() == pathlib.Path(".").resolve()
print(kd_leaf.__file__, len(image_store(size=16)))
'''
    env = dict(os.environ, PYTHONPATH=str(tmp_path/'site'), KD_LEAF_CACHE=str(tmp_path/'cache'))
    out = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith(str(tmp_path/'site'))
