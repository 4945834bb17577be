"The real images, where they are: set KD_LEAF_DATA to the folder of zips"
import os
from pathlib import Path
import pytest
from kd_leaf.core import seed_everything
from kd_leaf.data.cards import load_card
from kd_leaf.data.loaders import store_dls
from kd_leaf.data.store import image_store
from kd_leaf.distill.learner import distill, make_learner

HOME = Path(os.environ.get('KD_LEAF_DATA', Path(__file__).resolve().parents[2]/'shared'/'data'))
pytestmark = pytest.mark.skipif(not list(HOME.glob('*.zip')), reason='no real images: KD_LEAF_DATA names no folder of zips')


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('KD_LEAF_DATA', str(HOME))
        m.setenv('KD_LEAF_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.mark.parametrize('name', ['plant-pathology-2021', 'brain-tumor-mri', 'brain-tumor-binary', 'road-type', 'sports-balls'])
def test_store_agrees_with_its_card(name):
    card, store = load_card(name), image_store(name, 32)
    assert store.vocab == sorted(card.classes) and not store.synthetic
    assert {s: len(store.where(s)) for s in ('train', 'valid', 'test')} == card.counts


def test_a_cnn_learns_real_leaves():
    "Three epochs of the smallest student on real leaves are well above chance, and a distilled one is too"
    store = image_store('plant-pathology-2021', 32)
    seed_everything(0)
    dls = store_dls(store, device='cpu')
    teacher = make_learner(dls, 'cnn4', precision='fp32')
    with teacher.no_bar(), teacher.no_logging(): teacher.fit_one_cycle(3, 1e-2)
    student = distill(dls, teacher, 'cnn4', epochs=2, lr=1e-2, precision='fp32', seed=1)
    for learn in (teacher, student):
        with learn.no_bar(): probs, targets = learn.get_preds()
        assert (probs.argmax(1) == targets).float().mean() > 3/len(store.vocab)
