"""Changes the config inside a `.keras` file."""

import json
import zipfile


def tampered(path, change):
    """A copy of the file with its config changed."""
    other = path.with_name("tampered.keras")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            target.writestr(name, content)
    return other
