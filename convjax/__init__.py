"""convjax: ConvNet research in JAX.

    from convjax import Context, conv, dense, flatten, max_pool, relu, serial

    net = serial(conv(32, 3), relu, max_pool(2), conv(64, 3), relu, max_pool(2), flatten, dense(10))
    params, state = net.init(key, images)
    logits, state = net.apply(params, state, images, Context())

What this package offers is listed in `__init__.pyi`; each name is imported when it is first used,
so that a launcher answers `--help` before JAX is loaded.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
