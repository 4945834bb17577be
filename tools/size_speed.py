"""Bytes, milliseconds and scores of students as torch modules and as ONNX in fp32, fp16 and int8, on real leaves.

    python tools/size_speed.py [--train]

Writes results/deploy/size_speed.csv (one row a file, with provenance) and size_speed.md. Weights that are not in the cache are
trained first, only with --train: a quarter of an hour each on one core. Needs the images (KD_LEAF_DATA) and the extra `deploy`."""
import argparse
import numpy as np, torch
from kd_leaf.core import cache_dir, project_root, seed_everything, write_csv
from kd_leaf.data.loaders import store_dls
from kd_leaf.data.store import image_store
from kd_leaf.deploy.export import export_onnx
from kd_leaf.deploy.quantize import half_onnx, quantize_onnx, size_speed_table
from kd_leaf.distill.learner import make_learner
from kd_leaf.ensemble.model import Ensemble
from kd_leaf.models.precision import GrowImages
from kd_leaf.models.zoo import create_model, save_weights
from kd_leaf.study.files import provenance

DATASET, SIZE, EPOCHS, LR = 'plant-pathology-2021', 96, 8, 3e-3
STUDENTS = 'cnn4', 'shufflenet_v2_x1_0'
SHOWN = ['model', 'precision', 'bytes', 'params', 'gflops', 'ms', 'accuracy', 'f1', 'accuracy_diff', 'accuracy_low',
         'accuracy_high', 'f1_diff', 'f1_low', 'f1_high', 'agreement']


def weights_of(name, store, folder, train):
    "The student's weights: from the cache, or trained"
    file = folder/f'{name}.safetensors'
    if not file.exists():
        if not train: raise SystemExit(f'{file} is not there: run with --train')
        seed_everything(0)
        learn = make_learner(store_dls(store, bs=32), name, precision='fp32_cl')
        learn.fit_one_cycle(EPOCHS, LR, cbs=GrowImages(64, .6))
        save_weights(learn.model, file)
    return create_model(name, len(store.vocab), file).eval()


def files_of(name, model, store, folder):
    "The ONNX files of a network in three precisions"
    train, valid = store.where('train'), store.where('valid')
    images, targets = np.asarray(store.images[valid]), store.labels[valid]
    seen = np.random.default_rng(0).choice(train, 256, replace=False)
    fp32 = export_onnx(model, folder/f'{name}.fp32.onnx', store.vocab, SIZE, name=name, images=images[:64]).path
    fp16 = half_onnx(fp32, folder/f'{name}.fp16.onnx').path
    int8 = quantize_onnx(fp32, folder/f'{name}.int8.onnx', store.images[np.sort(seen)], images, targets).path
    return [fp32, fp16, int8]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--train', action='store_true', help='train weights that are not in the cache')
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder, store = cache_dir('deploy'), image_store(DATASET, size=SIZE)
    models = {name: weights_of(name, store, folder, args.train) for name in STUDENTS}
    models[' + '.join(STUDENTS)] = Ensemble(list(models.values()), vocab=store.vocab, size=SIZE, names=list(STUDENTS)).eval()
    files = [f for name, model in models.items() for f in files_of(name, model, store, folder)]
    test = store.where('test')
    table = size_speed_table(files, np.asarray(store.images[test]), store.labels[test], models)
    table = table.assign(dataset=DATASET, dataset_sha256=store.sha256, size=SIZE, n_test=len(test), epochs=EPOCHS, **provenance('cpu'))
    out = project_root()/'results/deploy'
    write_csv(out/'size_speed.csv', table)
    (out/'size_speed.md').write_text(table[SHOWN].round(4).to_markdown(index=False)+'\n', encoding='utf-8')
    print(table[SHOWN].round(4).to_string())


if __name__ == '__main__': main()
