"""Bytes, milliseconds and scores of the released networks as torch modules and as ONNX in fp32, fp16 and int8, on real leaves.

    python tools/size_speed.py [--study better_teacher]

Reads results/<study>/models, each network at the image size of its note, and what is too large for the repository from the cache of
whoever trained it: the teacher of these students, and its other students of that seed. The students of the commonest size are also
combined by their mean. Writes results/deploy/size_speed.csv (a row a file, with provenance) and size_speed.md. Nothing is trained.
Needs the images (KD_LEAF_DATA), the extra `deploy` and, for times worth reading, a machine that does nothing else."""
import argparse
import numpy as np, pandas as pd, torch
from kd_leaf.core import cache_dir, results_dir
from kd_leaf.data.store import image_store
from kd_leaf.deploy.export import export_onnx
from kd_leaf.deploy.quantize import half_onnx, quantize_onnx, size_speed_table
from kd_leaf.deploy.released import list_released, load_released
from kd_leaf.deploy.size_speed import size_speed_report
from kd_leaf.ensemble.model import Ensemble
from kd_leaf.models.weights import read_weights
from kd_leaf.models.zoo import create_model
from kd_leaf.study.files import provenance, read_record, record_files, weights_path
from kd_leaf.study.run import architecture


def networks(study):
    "Role, size, data set, classes and module of each network, by name: teachers, students, the mean of the students"
    released = list_released(study)
    found, cached = {}, {}
    for name, model in zip(released.name, released.model):
        module, note = load_released(name, study)
        role = 'teacher' if model in set(released.teacher) else 'student'
        found[name] = dict(role=role, module=module) | {k: note[k] for k in ('size', 'dataset', 'classes', 'accuracy')}
        cached |= in_cache(study, note)
    return dict(sorted((cached | found).items(), key=lambda o: o[1]['role'], reverse=True)) | ensemble(cached | found)


def in_cache(study, note):
    "Whose weights the cache has: the teacher of a released student, and the other students of its seed"
    folder = results_dir(study, note['profile'])
    if not note['teacher'] or not (student := folder/f'runs/{note["key"]}.json').exists(): return {}
    key = read_record(student)['teacher_key']
    records = [r for r in map(read_record, record_files(folder)) if weights_path(r['key']).exists()]
    ours = [r for r in records if r['key'] == key or r.get('teacher_key') == key and r['seed'] == note['seed']]
    return {r['model']: from_record(r) for r in ours}


def from_record(record):
    "A network of the cache; `ValueError` if its weights are not those on record"
    file = weights_path(record['key'])
    read_weights(file, record['weights_sha256'])
    module = create_model(architecture(record['model']), len(record['vocab']), file).eval()
    return dict(module=module, classes=record['vocab']) | {k: record[k] for k in ('role', 'size', 'dataset', 'accuracy')}


def ensemble(found):
    "The mean of the students of one size, where there are several"
    students = {k: o for k, o in found.items() if o['role'] == 'student'}
    size = int(pd.Series([o['size'] for o in students.values()]).mode()[0])
    students = {k: o for k, o in students.items() if o['size'] == size}
    if len(students) < 2: return {}
    first, modules = next(iter(students.values())), [o['module'] for o in students.values()]
    module = Ensemble(modules, vocab=first['classes'], size=size, names=list(students)).eval()
    return {'+'.join(students): first | dict(role='ensemble', module=module, accuracy=None)}


def files_of(name, network, store, folder):
    "The ONNX files of a network in three precisions"
    train, valid = store.where('train'), store.where('valid')
    images, targets = np.asarray(store.images[valid]), store.labels[valid]
    seen = np.sort(np.random.default_rng(0).choice(train, 256, replace=False))
    fp32 = export_onnx(network['module'], folder/f'{name}.fp32.onnx', store.vocab, network['size'], name=name, images=images[:64]).path
    fp16 = half_onnx(fp32, folder/f'{name}.fp16.onnx').path
    return [fp32, fp16, quantize_onnx(fp32, folder/f'{name}.int8.onnx', store.images[seen], images, targets).path]


def rows_of(name, network, folder):
    "The rows of a network; `ValueError` if it does not score what its note says"
    store = image_store(network['dataset'], size=network['size'])
    if store.vocab != list(network['classes']): raise ValueError(f'{name} knows {network["classes"]}, the images have {store.vocab}')
    test, files = store.where('test'), files_of(name, network, store, folder)
    table = size_speed_table(files, np.asarray(store.images[test]), store.labels[test], {name: network['module']})
    noted = network['accuracy']
    if noted is not None and abs(table.accuracy[0]-noted) > .005:
        raise ValueError(f'{name}: accuracy {table.accuracy[0]:.4f} on test, {noted:.4f} in its note')
    table.insert(1, 'role', network['role'])
    return table.assign(dataset=store.name, dataset_sha256=store.sha256, size=store.size, n_test=len(test))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--study', default='better_teacher', help='whose released networks are measured')
    study = parser.parse_args().study
    torch.set_num_threads(1)
    made = {k: v for k, v in provenance('cpu').items() if k != 'versions'}
    rows = pd.concat([rows_of(*o, cache_dir('deploy')) for o in networks(study).items()], ignore_index=True)
    table = size_speed_report(rows.assign(study=study, **made))
    table.save(results_dir('deploy'))
    print(table.text.to_string())


if __name__ == '__main__': main()
