"""Makes a page of HTML that holds all that it shows, and so opens offline, light or dark.

    text = render("convjax.sweep", "page.html", data=data, scripts=("curves.js",), plotly=True)

A template lies in the folder `html` of its package and extends `base.html`, whose content policy
lets nothing be loaded. Jinja escapes what it is given; `data` is for the page's own scripts.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from typing import Any


def render(
    package: str,
    template: str,
    *,
    data: Any = None,
    scripts: Sequence[str] = (),
    plotly: bool = False,
    compiles: bool = False,
    **values: Any,
) -> str:
    """The page of a template, as one text.

    package: whose folder `html` holds the template, its `style.css` if there is one, and its
        scripts.
    data: what JSON can hold, for the scripts, which find it as `data`.
    scripts: files that follow `shared.js`, in order; without any, the page runs nothing.
    plotly: whether they draw with Plotly. compiles: whether by charts that compile shaders.
    values: what the template shows, by name.

    Raises:
        ValueError: if `data` holds a number that is not finite.
    """
    import jinja2
    from markupsafe import Markup

    style = _text("convjax", "shared.css")
    if _file(package, "style.css").is_file():
        style += _text(package, "style.css")
    script = ""
    if scripts:
        files = [_text("convjax", "shared.js"), *(_text(package, name) for name in scripts)]
        script = '"use strict";\n' + "\n".join(files)
    loaders = [jinja2.PackageLoader(each, "html") for each in (package, "convjax")]
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.ChoiceLoader(loaders),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # As compact as it can be, and no NaN, which JavaScript does not read.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template(template).render(
        **values,
        data=data,
        compiles=compiles,
        plotly=Markup(_plotly()) if plotly else None,
        style=Markup(style),
        script=Markup(script),
    )


def _file(package: str, name: str) -> Any:
    return importlib.resources.files(package).joinpath("html", name)


def _text(package: str, name: str) -> str:
    return _file(package, name).read_text("utf-8")


def _plotly() -> str:
    """All of Plotly's JavaScript, 4.5 MB."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
