"""Models of jax and of Keras as ONNX files, for `exports`; runs in an environment of its own.

    python -m venv exporters && exporters/bin/pip install jax jax2onnx keras
    exporters/bin/python -m benchmarks make_exports_jax FOLDER
    python -m benchmarks exports FOLDER/*.onnx

Weights are random; each model has one input of floats.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax2onnx import to_onnx


def matrix(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.sqrt(shape[0]))


def jax_mlp(x: jax.Array) -> jax.Array:
    hidden = jax.nn.gelu(x @ matrix(64, 128, seed=0) + 0.1)
    return hidden @ matrix(128, 32, seed=1)


def jax_attention(x: jax.Array) -> jax.Array:
    query, key, value = (x @ matrix(64, 64, seed=seed) for seed in (0, 1, 2))
    weights = jax.nn.softmax(query @ jnp.swapaxes(key, 1, 2) / 8.0, axis=-1)
    return x + (weights @ value) @ matrix(64, 64, seed=3)


def keras_models() -> dict[str, tuple[Callable[[jax.Array], jax.Array], tuple[int, ...]]]:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    mlp = keras.Sequential([keras.Input((64,)), layers.Dense(128, activation="relu"), layers.Dense(32)])
    conv = [keras.Input((16, 16, 1)), layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()]
    cnn = keras.Sequential([*conv, layers.Dense(64, activation="relu"), layers.Dense(32)])
    sequence = keras.Sequential([keras.Input((9, 64)), layers.Dense(64, activation="tanh"), layers.Dense(32)])
    return {"keras_mlp": (mlp, (64,)), "keras_cnn": (cnn, (16, 16, 1)), "keras_dense_3d": (sequence, (9, 64))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    models = {"jax_mlp": (jax_mlp, (64,)), "jax_attention": (jax_attention, (9, 64)), **keras_models()}
    for name, (function, shape) in models.items():
        to_onnx(
            function, [("B", *shape)], model_name=name, return_mode="file", output_path=str(folder / f"{name}.onnx")
        )
        print(folder / f"{name}.onnx")
