"Properties of replayed views and of the teacher's cache, for pictures, orders, bytes and kills that hypothesis chooses"
import json, shutil, subprocess, sys
from functools import partial
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from kd_leaf.distill.cache import TeacherLogits, cache_teacher
from kd_leaf.distill.several import MeanLogits
from kd_leaf.data.store import image_store
from kd_leaf.distill.learner import distill
from kd_leaf.models.zoo import create_model
from kd_leaf.data.views import Views, mix64, view_dls

few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
keys = st.integers(0, 2**64-1)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Loaders, a teacher and its cache"
    torch.manual_seed(0)
    dls = view_dls(image_store('synthetic-leaves', 32), Views(n=3), bs=32, device='cpu')
    teacher, folder = create_model('cnn4', dls.c), tmp_path_factory.mktemp('cache')/'whole'
    return dls, teacher, folder, cache_teacher(teacher, dls, folder, bs=16, chunk=2)


@few
@given(st.lists(keys, min_size=1, max_size=9), st.integers(0, 1000), st.integers(0, 2**31), st.randoms(use_true_random=False), st.sampled_from([(8, 8), (17, 17), (32, 20)]))
def test_same_key_same_picture(ks, view, seed, rnd, size):
    "Whatever the batch, its order, and whether the views are given one by one"
    g, views, ks = np.random.default_rng(0), Views(seed=seed), np.array(ks, np.uint64)
    x = torch.from_numpy(g.integers(0, 256, (len(ks), 3, *size), dtype=np.uint8))
    whole = views(x, ks, view)
    assert ((0 <= whole) & (whole <= 1)).all()
    order = rnd.sample(range(len(ks)), len(ks))
    assert torch.equal(views(x[order], ks[order], view), whole[order])
    k = order[0]
    assert torch.equal(views(x[k:k+1], ks[k:k+1], np.array([view]))[0], whole[k])


def test_same_picture_in_another_process():
    code = "import numpy as np, torch; from kd_leaf.data.views import Views; x = torch.arange(3*16*16).reshape(1, 3, 16, 16).to(torch.uint8); print(Views(seed=5)(x, np.array([2**63+11], np.uint64), 7).double().sum().item().hex())"
    out = {subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(out) == 1


@given(st.lists(keys, min_size=2, max_size=50, unique=True), keys)
def test_hash_is_one_to_one(ks, seed):
    "Each step of mix64 can be undone, so different numbers never meet"
    assert len(set(mix64(seed, np.array(ks, np.uint64)).tolist())) == len(ks)


@few
@given(rnd=st.randoms(use_true_random=False), size=st.integers(1, 60))
def test_any_order_same_logits(made, rnd, size):
    dls, teacher, _, cache = made
    rows = np.array(rnd.choices(range(len(dls.train.keys)), k=size)); view = np.array(rnd.choices(range(3), k=size))
    got = cache(dls.train.keys[rows], view)
    with torch.inference_mode(): want = teacher.eval()(dls.train.after_batch(dls.train.views_of(rows, view))[0])
    assert torch.allclose(got, torch.Tensor(want), atol=1e-2)


@few
@given(data=st.data())
def test_flipped_byte_is_refused(made, data, tmp_path):
    folder = tmp_path/'flipped'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made[2], folder)
    raw = bytearray((folder/'logits.bin').read_bytes())
    at, bit = data.draw(st.integers(0, len(raw)-1)), data.draw(st.integers(0, 7))
    raw[at] ^= 1 << bit
    (folder/'logits.bin').write_bytes(raw)
    with pytest.raises(ValueError, match='its sha256 differs'): TeacherLogits(folder)


@settings(few, max_examples=5)
@given(data=st.data())
def test_killed_build_resumes_to_the_same_file(made, data, tmp_path):
    "The file is cut anywhere, as a kill would, and the header says that it is not done"
    dls, teacher, whole, _ = made
    folder = tmp_path/'killed'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    raw, header = (whole/'logits.bin').read_bytes(), json.loads((whole/'header.json').read_text())
    (folder/'logits.bin').write_bytes(raw[:data.draw(st.integers(0, len(raw)))])
    (folder/'header.json').write_text(json.dumps(header | dict(sha256=None, n_views=0)))
    cache_teacher(teacher, dls, folder, bs=16, chunk=2)
    assert (folder/'logits.bin').read_bytes() == raw


def other(change):
    "Loaders that differ from the cache's in one thing"
    store = image_store('synthetic-leaves', 48 if change == 'size' else 32, seed=1 if change == 'images' else 0)
    dls = view_dls(store, Views(n=3, rotate=10) if change == 'views' else Views(n=3), bs=32, device='cpu')
    if change == 'classes': dls.vocab = dls.train.vocab = dls.valid.vocab = ['x', *list(dls.vocab)[1:]]
    return dls


@pytest.mark.parametrize('change', ['size', 'images', 'views', 'classes'])
def test_what_differs_is_refused_by_name(made, change):
    _, teacher, folder, cache = made
    for call in (lambda: cache.check(other(change)), lambda: cache_teacher(teacher, other(change), folder), lambda: MeanLogits([cache]).check(other(change))):
        with pytest.raises(ValueError, match=f'  {change}: '): call()


def test_another_teacher_is_refused(made):
    dls, teacher, folder, cache = made
    with pytest.raises(ValueError, match='  teacher: '): cache_teacher(create_model('cnn4', dls.c), dls, folder)
    with pytest.raises(ValueError, match='  teacher: '): cache.check(dls, create_model('cnn4', dls.c))


def test_cached_student_takes_nothing_but_the_cache(made, monkeypatch):
    "A teacher that cannot run any more still teaches, and is neither trained, moved nor put in another mode"
    dls, teacher, folder, cache = made
    def fail(*args): raise AssertionError('the teacher ran')
    teacher.train()
    handle, before = teacher.register_forward_pre_hook(fail), {k: v.clone() for k, v in teacher.state_dict().items()}
    monkeypatch.setattr(TeacherLogits, 'verify', lambda *args, **kw: None)  # which asks it for a few entries
    monkeypatch.setattr('kd_leaf.distill.learner.cache_teacher', partial(cache_teacher, folder=folder))
    distill(dls, teacher, 'cnn4', 1, weights='none', precision='fp32')
    handle.remove()
    assert teacher.training and all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
