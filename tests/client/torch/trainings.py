"""A training of transformers and one of Lightning, which tests run here or in another process.

python3 trainings.py LIBRARY ADDRESS FOLDER KILL_AT: ends by SIGKILL after so many steps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from nni_compression.torch import AGPPruner, QATQuantizer
from torch_helpers import environment, run_ranks

EPOCHS = 4
STEPS = 5  # per epoch
SAVE_STEPS = 3
TIMEOUT = 240  # seconds; generous, for a machine that is busy with a build

AGP = [{"op_types": ["Linear"], "final_sparsity": 0.8, "end_epoch": 3}]
QAT = [{"op_types": ["Linear"], "quant_types": ["weight", "output"], "quant_start_step": 2}]


def compressors(address: str, **kwargs: Any) -> list[Any]:
    """A pruner that needs epochs, and a quantizer that needs steps."""
    return [
        AGPPruner(AGP, server=address, **kwargs),
        QATQuantizer(QAT, server=address, **kwargs),
    ]


# transformers


def bert(seed: int = 0) -> Any:
    """A random BERT for sequences of words 0 to 29, with two classes."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    return transformers.BertForSequenceClassification(config)


def sentences(count: int = 4 * STEPS) -> list[dict[str, Any]]:
    tokens = torch.randint(0, 30, (count, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": int(row.sum()) % 2} for row in tokens]


def trainer(
    model: Any, folder: Path, callbacks: list[Any], kill_at: int = -1, **arguments: Any
) -> Any:
    """A Trainer that saves every three steps, and ends the process after some."""
    import transformers

    class Kill(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    given = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "logging_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": [],
        **arguments,
    }
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(output_dir=str(folder), **given),
        train_dataset=sentences(),
        eval_dataset=sentences(4),
        callbacks=[*callbacks, Kill()],
    )


# Lightning


def fit(
    lightning: Any,
    folder: Path,
    callbacks: list[Any],
    kill_at: int = -1,
    ckpt_path: str | None = None,
    module: Any = None,
    **arguments: Any,
) -> Any:
    """Fits a network, or this module, with a Trainer that saves every epoch; returns the module."""
    from torch import nn

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(torch.relu(self.fc1(x)))

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def test_step(self, batch: Any, number: int) -> None:
            self.log("loss", self.training_step(batch, number))

        def validation_step(self, batch: Any, number: int) -> None:
            self.test_step(batch, number)

        def predict_step(self, batch: Any, number: int) -> torch.Tensor:
            return self(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

        def on_train_batch_end(self, *unused: Any) -> None:
            if self.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    saves = lightning.callbacks.ModelCheckpoint(
        folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
    )
    module = Module() if module is None else module
    given = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, **arguments}
    made = lightning.Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, saves],
        **given,
    )
    made.fit(module, batches(), ckpt_path=ckpt_path)
    return module


def batches() -> Any:
    """The data of an epoch."""
    data = torch.randn(4 * STEPS, 8, generator=torch.Generator().manual_seed(1))
    dataset = torch.utils.data.TensorDataset(data, (data.sum(1) > 0).long())
    return torch.utils.data.DataLoader(dataset, 4)


# Other processes


def run_and_kill(library: str, address: str, folder: Path, kill_at: int) -> None:
    """Runs a training in a process that is killed after so many steps."""
    command = [sys.executable, __file__, library, address, str(folder), str(kill_at)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def run_under_torchrun(program: str, *arguments: str) -> list[str]:
    """Runs a program as two ranks, in the environment that torchrun gives; what they print."""
    # As torchrun does, on a port of its own choice.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # The program's arguments begin with the rank, as those of other ranks do.
    return run_ranks(
        2,
        program,
        *arguments,
        timeout=TIMEOUT,
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(store.port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )


def main() -> None:
    library, address, folder, kill_at = sys.argv[1:]
    torch.set_num_threads(1)
    if library == "transformers":
        from nni_compression.integrations.transformers import CompressionCallback

        callback = CompressionCallback(*compressors(address))
        trainer(bert(), Path(folder), [callback], int(kill_at)).train()
    else:
        import lightning.pytorch

        from nni_compression.integrations.lightning import CompressionCallback

        callback = CompressionCallback(*compressors(address))
        fit(lightning.pytorch, Path(folder), [callback], int(kill_at))


if __name__ == "__main__":
    main()
