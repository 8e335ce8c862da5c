"""What XLA is told, for each platform."""

from __future__ import annotations

import functools

import jax

# In JAX 0.10 and 0.12 on the CPU: YNN's kernels make the gradients of convolutions 3 to 10 times
# slower than the older ones; and 512 bits is the width of AVX-512, of which XLA uses half.
_OPTIONS = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_prefer_vector_width": "512"},
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
    """What to pass to `jax.jit(compiler_options=...)` for the fastest ConvNets on a platform.

    An option that this JAX does not know is left out.
    """
    return {
        name: value
        for name, value in _OPTIONS.get(platform, {}).items()
        if _is_known(platform, name, value)
    }


def _is_known(platform: str, name: str, value: str) -> bool:
    device = jax.devices(platform)[0]
    try:
        with jax.default_device(device):
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
