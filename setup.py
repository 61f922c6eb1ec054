"""Builds `mlnb`. Every fact about the package is read from `settings.ini`; this file only says how."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(HERE / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def lines(key: str) -> list[str]:
    "The non-empty lines of a settings.ini entry"
    return [line.strip() for line in cfg[key].splitlines() if line.strip()]


extras = {key.removesuffix("_requirements"): lines(key) for key in cfg if key.endswith("_requirements")}
extras["dev"] = list(dict.fromkeys(line for extra in extras.values() for line in extra))  # the tools and every other extra

setup(
    version=cfg["version"],
    description=cfg["description"],
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=" + cfg["min_python"],
    install_requires=lines("requirements"),
    extras_require=extras,
    packages=find_packages(include=["mlnb", "mlnb.*"]),
    # mlnb/templates is a symbolic link to nbs/reports: the templates exist once, and resolve alike in a checkout, an editable install and a wheel
    package_data={"mlnb": ["py.typed", "data/*", "templates/*.ipynb"]},
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    zip_safe=False,
)
