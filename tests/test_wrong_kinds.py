"A thing of the wrong kind, at every door a user comes in by: one line that names it and says what to give"
import pytest
from kd_leaf.all import *
from kd_leaf.models.zoo import create_model

CASES = {  # what is called, with what; what the line must name
    'model=5': lambda x: make_learner(x.dls, 5),
    'no `vocab`': lambda x: make_learner(None, 'cnn4'),
    "metrics='accuracy'": lambda x: make_learner(x.dls, 'cnn4', metrics='accuracy'),
    "class_weights='balanced'": lambda x: make_learner(x.dls, 'cnn4', class_weights='balanced'),
    'class_weights of shape (2,)': lambda x: make_learner(x.dls, 'cnn4', class_weights=[1, 2]),
    'weights=None': lambda x: make_learner(x.dls, 'cnn4', weights=None),
    'precision None': lambda x: make_learner(x.dls, 'cnn4', precision=None),
    'a teacher is a module': lambda x: distill(x.dls, 'resnet50', 'cnn4', 1),
    'model=None': lambda x: distill(x.dls, x.net, None, 1),
    'loss None': lambda x: distill(x.dls, x.net, 'cnn4', 1, loss=None),
    "epochs='3'": lambda x: distill(x.dls, x.net, 'cnn4', '3'),
    'weights=3': lambda x: distill(x.dls, x.net, 'cnn4', 1, weights=3),
    'source=5': lambda x: image_store(5),
    "source=['a']": lambda x: image_store(['a']),
    'store=None': lambda x: store_dls(None),
    'plan=[1, 2, 3]': lambda x: store_dls(x.store, [1, 2, 3]),
    'views=5': lambda x: view_dls(x.store, 5),
    "teacher='resnet50'": lambda x: cache_teacher('resnet50', x.views),
    'dls=None': lambda x: cache_teacher(x.net, None),
    'study=5': lambda x: load_study(5),
    'study=None': lambda x: load_runs(None),
    "study='leaf'": lambda x: run_study('leaf'),
    'at least one member': lambda x: Ensemble([]),
    'members=NoneType': lambda x: Ensemble(None),
    'not str': lambda x: Ensemble(['cnn4']),
    'idx=': lambda x: smote(x.store, 'train'),
    "n_classes='3'": lambda x: create_model('cnn4', '3'),
    'n_classes=-1': lambda x: create_model('resnet18', -1),
    "alpha='a'": lambda x: KDCallback(x.net, alpha='a'),
    'do not pair': lambda x: paired_bootstrap(None, None, None),
    'do not fit': lambda x: scores(None, None),
}


@pytest.fixture(scope='module')
def given():
    class given: store = image_store('synthetic-leaves', 24)
    given.dls = store_dls(given.store, bs=32, device='cpu')
    given.views = view_dls(given.store, Views(n=2), bs=32, device='cpu')
    given.net = create_model('cnn4', given.dls.c)
    return given


@pytest.mark.parametrize('named', CASES)
def test_wrong_kind(named, given):
    with pytest.raises((TypeError, ValueError)) as e: CASES[named](given)
    said = str(e.value)
    assert named in said and '\n' not in said, said
