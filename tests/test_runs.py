import numpy as np
from absl.testing import flagsaver

import data_utils
import train
from conftest import TINY
from runs import Run, TrainedRun


def open_run(data_dir, folder):
    """A run in a folder, with the trainer whose state it keeps."""
    with flagsaver.flagsaver(**TINY | {"data_dir": str(data_dir)}):
        metadata = data_utils.read_metadata(data_dir)
        trainer = train.Trainer(data_dir, metadata, jit_compile=False)
        return Run(folder, train.configuration(metadata), data_dir, trainer.state), trainer


def mark_and_evaluate(run, trainer, step, loss):
    """Validates weights that can be told from those of other steps."""
    trainer.model.theta.assign(np.full([2, 3], step))
    run.evaluation(step, {"loss": loss, "perplexity": np.exp(loss)})
    run.save(step)


def theta_of(folder, checkpoint):
    model, _, step = TrainedRun(folder).network(checkpoint)
    return step, model.theta.numpy()[0, 0]


def test_the_best_network_is_kept_also_when_training_is_resumed(data_dir, tmp_path):
    run, trainer = open_run(data_dir, tmp_path)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 4.0)):
        mark_and_evaluate(run, trainer, step, loss)
    assert theta_of(tmp_path, "best") == (2, 2) and theta_of(tmp_path, "latest") == (3, 3)
    run.close()
    run, trainer = open_run(data_dir, tmp_path)
    assert trainer.model.theta.numpy()[0, 0] == 3
    mark_and_evaluate(run, trainer, 4, 2.5)
    assert theta_of(tmp_path, "best") == (2, 2) and theta_of(tmp_path, "4") == (4, 4) and theta_of(tmp_path, "3") == (3, 3)
    mark_and_evaluate(run, trainer, 5, 1.5)
    assert theta_of(tmp_path, "best") == (5, 5)


def test_a_network_has_every_weight_and_the_temperature_of_its_checkpoint(search_run, data_dir):
    one, tau, step = TrainedRun(search_run).network("latest")
    again, _, _ = TrainedRun(search_run).network(str(step), mem_len=20)
    untrained = open_run(data_dir, search_run.parent.parent / "untrained")[1].model
    assert abs(tau - 0.1) < 1e-6 and again.mem_len == 20  # tau_end
    for weight, same, other in zip(one.weights, again.weights, untrained.weights):
        assert np.array_equal(weight, same) and not np.array_equal(weight, other), weight.path


def test_a_run_keeps_the_tokenizer_of_its_data(search_run, data_dir):
    for name in ("tokenizer.model", "tokenizer.vocab"):
        assert (search_run / name).read_bytes() == (data_dir / name).read_bytes()
