"""Networks by name: `create("resnet18", classes=10)`.

One file a family; each model is a function from the number of classes, and keywords, to a layer.
"""

from convjax.models.registry import create as create
from convjax.models.registry import function_of as function_of
from convjax.models.registry import names as names
