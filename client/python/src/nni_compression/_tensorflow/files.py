"""Files of models, masks and quantization parameters."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from .._files.atomic import NewFiles
from ..errors import InvalidArgumentError

_v1 = tf.compat.v1


class TensorFlowFiles(NewFiles):
    """Files of Keras, TensorFlow and ONNX, and numpy and JSON files."""

    def save_keras(self, model: Any, path: str) -> None:
        """The weights, or the whole model, by the ending of `path`."""
        if not isinstance(model, tf.keras.Model):
            raise TypeError(f"the model is a {type(model).__name__}; only a Model can be written")
        if path.endswith(".weights.h5"):
            model.save_weights(str(self.temporary(path)))
        elif path.endswith(".keras"):
            model.save(str(self.temporary(path)))
        else:
            raise InvalidArgumentError(
                f"model_path is {path!r}; it must end with .weights.h5, for the weights, or with "
                ".keras, for the whole model"
            )

    def save_checkpoint(self, values: Mapping[str, Any], path: str) -> None:
        """Writes a checkpoint with this prefix, in the format of `Saver`, of name -> array."""
        prefix = str(self.temporary(path + ".index")).removesuffix(".index")
        self.temporary(path + ".data-00000-of-00001")
        with tf.Graph().as_default(), _v1.Session() as session:
            tensors = [_v1.placeholder(value.dtype, value.shape) for value in values.values()]
            save = tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=list(values),
                shape_and_slices=[""] * len(values),
                tensors=tensors,
            )
            session.run(save, dict(zip(tensors, values.values())))

    def save_onnx(self, model: Any, path: str) -> None:
        """A `ModelProto`."""
        self.temporary(path).write_bytes(model.SerializeToString())

    def save_masks(self, masks: Mapping[str, Any], path: str) -> None:
        """Writes arrays for `numpy.load`, under names with any characters."""
        with zipfile.ZipFile(self.temporary(path), "w") as archive:
            for name, mask in masks.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, mask)  # type: ignore[no-untyped-call]

    def save_calibration(self, calibration: Mapping[str, Any], path: str) -> None:
        """Writes JSON that preserves all numbers bit for bit; arrays become lists."""
        plain = {
            name: {
                key: value.tolist() if hasattr(value, "tolist") else value
                for key, value in of.items()
            }
            for name, of in calibration.items()
        }
        self.temporary(path).write_text(json.dumps(plain, indent=1))
