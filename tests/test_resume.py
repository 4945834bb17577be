"`run_all` killed in the middle of a student, and started again; parameters that do not exist"
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAPERMILL = str(Path(sys.executable).with_name('papermill'))


def project(dest):
    "A copy of the project whose quick profile is quicker still"
    for d in ('nbs', 'kd_leaf', 'data'): shutil.copytree(ROOT/d, dest/d, ignore=shutil.ignore_patterns('__pycache__'))
    for f in ('pyproject.toml', 'settings.ini'): shutil.copy(ROOT/f, dest/f)
    toml = dest/'nbs/studies/leaf.toml'
    text, n = re.subn(r'(\[profile\.quick\][^\n]*\n).*?(?=\n\[profile)', r'\1dataset = "synthetic-leaves"\nsize = 32\nseeds = [0]\n'
                      'teacher = {epochs = 1, bs = 32, mode = "fp32_cl"}\nstudent = {epochs = 2, fraction = 0.5, views = 2, mode = "fp32_cl"}\nselector = {epochs = 2}\n'
                      'grid = {teachers = ["shufflenet_v2_x0_5"], balance = ["none"]}\n', toml.read_text(encoding='utf-8'), flags=re.S)
    assert n == 1
    toml.write_text(text)
    return dest


def run_all(root, *args, **kw):
    env = {k: v for k, v in os.environ.items() if not k.startswith('KD_LEAF')} | dict(PYTHONPATH=str(root), KD_LEAF_CACHE=str(root/'cache'))
    return subprocess.Popen([PAPERMILL, 'nbs/run_all.ipynb', 'out.ipynb', '-p', 'profile', 'quick', '-p', 'studies', '["leaf"]', *args], cwd=root, env=env,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, **kw)


def kernels_of(root):
    "Processes that work in `root`: papermill starts each kernel in a session of its own"
    def cwd(p):
        try: return os.readlink(p/'cwd')
        except OSError: return ''
    return [int(p.name) for p in Path('/proc').iterdir() if p.name.isdigit() and cwd(p) == str(root) and int(p.name) != os.getpid()]


def records(root): return {f.stem: f.stat().st_mtime_ns for f in (root/'results_quick/leaf/runs').glob('*.json')}


@pytest.mark.skipif(not Path('/proc/self/cwd').exists(), reason='finds the kernels through /proc')
def test_killed_in_a_student_and_started_again(tmp_path):
    whole, broken = project(tmp_path/'whole'), project(tmp_path/'broken')
    p = run_all(whole)
    err = p.communicate()[1]
    assert p.returncode == 0, err
    assert len(records(whole)) == 8  # a teacher, 4 students, one taught by an ensemble, 2 selectors

    p = run_all(broken)
    deadline = time.time()+900
    while len(records(broken)) < 3 and p.poll() is None and time.time() < deadline: time.sleep(.05)  # a teacher, 2 students: another has begun
    for pid in kernels_of(broken): os.kill(pid, signal.SIGKILL)
    p.communicate()
    done = records(broken)
    assert 3 <= len(done) < len(records(whole))
    assert all(json.loads((broken/f'results_quick/leaf/runs/{k}.json').read_text())['key'] == k for k in done)  # whole, all of them

    p = run_all(broken)
    err = p.communicate()[1]
    assert p.returncode == 0, err
    after = records(broken)
    assert {k: after[k] for k in done} == done  # not made again
    assert set(after) == set(records(whole))
    a, b = (pd.read_csv(r/'results_quick/leaf/runs.csv').set_index('key') for r in (whole, broken))
    metrics = [c for c in a if c in ('accuracy', 'precision', 'recall', 'f1') or c.startswith('valid_')]
    assert len(metrics) == 8
    pd.testing.assert_frame_equal(a[metrics], b[metrics], check_exact=True)


def test_a_bad_parameter_stops_at_once(tmp_path):
    "Bad values of known ones are in study/01_spec and study/02_config; here is what papermill says in the end"
    root = project(tmp_path/'p')
    p = run_all(root, '-p', 'profil', 'quick')
    _, err = p.communicate(timeout=120)
    assert p.returncode != 0 and "unknown parameter 'profil': did you mean 'profile'" in err
    assert not (root/'results_quick').exists()


def test_a_results_folder_in_the_way_stops_before_training(tmp_path):
    root = project(tmp_path/'p')
    (root/'results_quick').mkdir()
    (root/'results_quick/leaf').write_text('a file where a folder should be')
    p = run_all(root)
    _, err = p.communicate(timeout=200)
    assert p.returncode != 0 and 'cannot write to' in err
