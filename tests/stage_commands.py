"""The command of each training stage, with a few small steps."""

import itertools

from metajax.config.fields import flag_and_value


def pretrain_command(material, workdir, **changes):
    settings = {"steps": 6, "batch_size": 4, "max_length": 16, "save_every": 2, "keep": 2}
    return _command("pretrain", material.bert, workdir, settings | changes, "--text", material.text)


def metatrain_command(material, workdir, model=None, **changes):
    settings = {
        "ways": 3,
        "shots": 1,
        "queries": 3,
        "steps": 4,
        "meta_batch_size": 2,
        "inner_steps": 1,
        "save_every": 2,
        "held_out": 0,  # Later stages read the last checkpoint.
    }
    model = model or material.bert
    data = ("--tasks", material.intents)
    return _command("metatrain", model, workdir, settings | changes, *data)


def finetune_command(material, workdir, model=None, **changes):
    settings = {"steps": 4, "batch_size": 8, "save_every": 2, "glue_dir": material.glue}
    data = ("--tasks", "glue:mrpc", material.three, "--dev", material.three_dev)
    return _command("finetune", model or material.bert, workdir, settings | changes, *data)


def _command(stage, model, workdir, settings, *data):
    given = [flag_and_value(name, value).split() for name, value in settings.items()]
    return [stage, "--model", model, "--workdir", workdir, *data, *itertools.chain(*given)]


COMMANDS = {
    "pretrain": pretrain_command,
    "metatrain": metatrain_command,
    "finetune": finetune_command,
}
