"""The classes of all keys as people read them: docs/resume_keys.md."""

from __future__ import annotations

from launcher.config.resume import CLASS_MEANINGS, resume_classes

_HEAD = """# What a changed key means to a resumed run

Every key of the schema carries one of these classes, and a test fails for a key without one. This
page is generated from the schema; [resume.md](resume.md) says how `launch resume` is used.
"""


def render_resume_keys() -> str:
    """A section per class, a row per group of keys."""
    parts = [_HEAD]
    for name, meaning in CLASS_MEANINGS.items():
        parts.append(f"\n## {name}\n\nWhat happens: {meaning}.\n\n| group | keys |\n|---|---|\n")
        groups: dict[str, list[str]] = {}
        for key, kind in resume_classes():
            if kind == name:
                group, _, inside = key.partition(".")
                groups.setdefault(group if inside else "(top)", []).append(f"`{inside or key}`")
        parts += [f"| {group} | {', '.join(keys)} |\n" for group, keys in groups.items()]
    return "".join(parts)


if __name__ == "__main__":
    print(render_resume_keys(), end="")  # > docs/resume_keys.md
