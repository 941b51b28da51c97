"""Image templates: Pongo2's language as images use it, and what an untrusted template cannot do."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidImage
from utsuwa.instances.templates import plain, rendering
from utsuwa.instances.templates.rendering import render
from utsuwa.instances.templates.variables import Facts, Rendering, variables

FACTS = Facts(
    name="c1",
    architecture="x86_64",
    ephemeral=False,
    privileged=True,
    config={"user.foo": "bar", "user.lines": "a\nb\r\n\n", "limits.cpu": "2"},
    devices={"eth0": {"type": "nic", "name": "eth0"}},
)


def values() -> dict[str, Any]:
    return variables(Rendering("", "create", "/etc/x", {"default": "from the image"}, FACTS))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("name: {{ container.name }}\n", "name: c1\n"),
        ("{{ instance.name }}.{{ instance.type }}.{{ container.architecture }}", "c1.container.x86_64"),
        ("{{ trigger }} {{ path }}\r\n", "create /etc/x\n"),
        ('{{ config_get("user.foo", "_unset_") }}', "bar"),
        ('{{ config_get("user.none", "_unset_") }}', "_unset_"),
        ('{{ config_get("user.none") }}', ""),
        ('{{ config_get("user.none", properties.default) }}', "from the image"),
        ('{% if config_get("user.none", "") == "" %}a{% else %}b{% endif %}', "a"),
        ('[{{ config_get("user.lines", "") }}]{{ config_get("user.lines")|length }}', "[a\nb]3"),
        ('{{ config["user.foo"] }}{{ devices.eth0.name }}', "bareth0"),
        ("{{ container.ephemeral }}{{ container.privileged }}", "falsetrue"),
        ('{% if container.privileged == "true" %}p{% endif %}', "p"),
        ("{% if container.ephemeral %}e{% endif %}", ""),
        ("{{ container.ephemeral|yesno }}{{ container.privileged|yesno:'on,off' }}", "noon"),
        ("{% if !container.ephemeral && (trigger == 'x' || trigger != 'y') %}1{% endif %}", "1"),
        ('{{ properties.none|default:"x|y:z }}" }}', "x|y:z }}"),
        ("{{ nothing.at.all }}{{ container.items }}{{ container.__class__ }}{{ config_get }}", ""),
        (
            "{% for key, value in config %}{{ key }}={{ value|cut:'\n' }};{% endfor %}",
            "limits.cpu=2;user.foo=bar;user.lines=ab\r;",
        ),
        ("{% for a in '' %}{{ a }}{% empty %}none{% endfor %}", "none"),
        ('{% with name=container.name, b="x" %}{{ name }}{{ b }}{% endwith %}{{ b }}', "c1x"),
        (
            '{%- if config_get("user.none", "") == "" %}{{- config_get("user.foo", properties.default) }}'
            "{%- elif trigger %}{% else %}{% endif %}",
            "bar",
        ),
        ("{% for name in devices %}{{ forloop.Counter }}{{ name }}{% endfor %}", "1eth0"),
        ("{% autoescape off %}<{{ '<&>' }}>{% endautoescape %}", "<<&>>"),
        ("a{% comment %}{{ bad }{% endcomment %}{# worse {{ #}b", "ab"),
        ('{% ifequal container.name "c1" %}y{% else %}n{% endifequal %}', "y"),
        ('{% ifnotequal container.name "c1" %}y{% else %}n{% endifnotequal %}', "n"),
        ("{% set a = 'x' %}{{ a + 'y' + 1 }}{{ 3 - 1 }}", "xy12"),
        ("{{ path|first }}{{ path|last }}{{ path.1 }}{{ path[2] }}{{ path[9] }}{{ ''|last }}", "/xet"),
        ("{{ 'aBc'|upper|lower|capfirst }} {{ 'ab cd'|title }} {{ 'ab cd'|wordcount }}", "Abc Ab Cd 2"),
        (
            "{{ 'abcdef'|truncatechars:5 }}{{ 'abcdef'|truncatechars:1 }}{{ 'ab'|truncatechars:2 }}",
            "ab....ab",
        ),
        ("{{ 'a,b'|split:','|join:'+' }}{{ 'a b'|urlencode }}{{ 'a-b'|cut:'-' }}", "a+ba%20bab"),
        ("{{ '7x'|integer }}{{ '7'|integer|add:1 }}{{ 'a'|add:1 }}{{ 'abc'|length }}", "08a13"),
        (
            "{{ nothing|default_if_none:'n' }}{{ ''|default_if_none:'n' }}{{ 'a\"b'|addslashes|safe }}",
            'na\\"b',
        ),
        ("{{ container.name }}\n\n", "c1\n\n"),
        ("no tags { } %} }}", "no tags { } %} }}"),
    ],
)
def test_templates_of_images(source: str, expected: str) -> None:
    assert render(source, values()) == expected


PLAIN = {
    "": "",
    "{{ container.name }}\n": "c1\n",
    "127.0.1.1\t{{container.name}}\n\n::1 {{ path }} }} }\n": "127.0.1.1\tc1\n\n::1 /etc/x }} }\n",
    "{{ container.privileged }}{{ properties.none }}{{ devices.eth0.type }}": "truenic",
    '{{ config_get("user.foo", properties.default) }}': "bar",
    '{{ config_get("user.none", properties.default) }}': "from the image",
    "{{ config_get('user.lines', '') }}": "a\nb",
    "{{ config_get('user.none', \"\") }}|{{ config_get('user.none', 'x y') }}": "|x y",
    '{% if config_get("user.foo", "") == "" %}a{% else %}b{{ path }}{% endif %}\n': "b/etc/x\n",
    '{% if container.type != "container" %}{% if path %}a{% endif %}b{% else %}c{% endif %}': "c",
    '{% if properties.none == "" %}a{% endif %}': "",
    '{% if config_get("x", properties.none) != "%" %}b{% endif %}': "b",
    "{% if container.ephemeral %}{{ path }}{% else %}{{ container.ephemeral }}{% endif %}": "false",
    " \n {%- if container.privileged -%}\n a \n{{- path -}} \n{%- else -%} b {% endif -%}\n\n": "a/etc/x",
}
BRANCHES = (
    "{% if path %}",
    '{%- if trigger == "x" -%}',
    "{% else %}",
    "{%- else %}",
    "{% endif %}",
    "{% endif -%}",
)


@pytest.mark.parametrize(("source", "expected"), PLAIN.items())
def test_plain_templates_need_no_jinja(source: str, expected: str) -> None:
    assert plain.render(source, values()) == expected
    assert render(source, values()) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{{ container.name }}",
        "{# {{ container.name }} #}",
        "{% if path && trigger %}{% endif %}",
        "{% if nothing %}{% endif %}",
        "{% if devices.eth0 %}{% endif %}",
        "{% if path == trigger %}{% endif %}",
        "{% if path %}{{ path|upper }}{% endif %}",
        "{% if path %}{% else %}{{ nothing }}{% endif %}",
        "{% if path %}{% elif trigger %}{% endif %}",
        "{% if path %}{% else %}{% else %}{% endif %}",
        "{% if path %}",
        "{% if path }}{% endif %}",
        "{% endif %}",
        "{% else %}",
        "{% path %}",
        "{% if path %}" * 9 + "{% endif %}" * 9,
        "{{ path }}\r\n",
        "{{ nothing }}",
        "{{ true }}",
        "{{ config_get }}",
        "{{ devices.eth0 }}",
        "{{ path.x }}",
        "{{+ path }}",
        "{{ path %}",
        "{{ path|upper }}",
        "{{ config_get('a') }}",
        "{{ config_get('a', 'b\r') }}",
        "{{ path\0 }}",
        '{{ config_get("user.none", "}}") }}',
    ],
)
def test_other_templates_are_left_to_jinja(source: str) -> None:
    assert plain.render(source, values()) is None


def test_a_long_output_is_left_to_jinja() -> None:
    third = plain.MAX_OUTPUT // 3 - 100
    long = values() | {"path": "x" * third}
    assert plain.render("{{ path }}" * 3, long) == "x" * third * 3
    assert plain.render("{{ path }}" * 4, long) is None


@given(
    st.lists(
        st.sampled_from(
            [*PLAIN, *BRANCHES, "{", "}", "{{", "}}", "{%", "'", '"', " ", "\n", "x", "{{ path.", "é"]
        )
    )
)
def test_plain_templates_mean_the_same_to_jinja(parts: list[str]) -> None:
    rendered = plain.render("".join(parts), values())
    if rendered is not None:
        assert rendered == render("".join(parts), values())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ x", "not closed"),
        ("{% comment %}", "comment is not closed"),
        ("{% if %}", "line 1"),
        ("\n\n{% nonsense %}", "line 3"),
        ('{% include "/etc/passwd" %}', "Include is not supported"),
        ('{% extends "x" %}', "Extends is not supported"),
        ("{% macro x() %}{% endmacro %}", "Macro is not supported"),
        ("{{ range(5) }}", "only function is config_get"),
        ("{{ container.name.upper() }}", "only function is config_get"),
        ("{{ config_get(*path) }}", "only function is config_get"),
        ("{{ config_get() }}", "TypeError"),
        ("{{ 9**99 }}", "Pow is not supported"),
        ("{{ 'a' * 10 }}", "Mul is not supported"),
        ("{{ path ~ path }}", "Concat is not supported"),
        ("{{ 'a' - 'b' }}", "only numbers"),
        ("{{ 99999999999999999999 }}", "number is too large"),
        ("{{ 1" + "0" * 5000 + " }}", "ValueError"),
        ("{{ path|nope }}", "filter 'nope' is not supported"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ("{{ path|_loop }}", "filter '_loop' is not supported"),
        ("{{ path|center(100000000) }}", "filter 'center' is not supported"),
        ("{% for a in path recursive %}{{ loop(a) }}{% endfor %}", "line 1"),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "too deep"),
        ("{% if path %}" * 60 + "{% endif %}" * 60, "too deep"),
        ("{% set a = 'x' %}" + "{% set a = a + a %}" * 40, "too long"),
        ("{% for a in path %}{{ loop }}" + "{% for b in path %}" * 15 + "{% endfor %}" * 16, "too long"),
        ("{% set a = 'x' %}" + "{% set a = a + a %}" * 23 + "{{ a }}{{ a }}", "output has more than"),
        ("{{{{" * 10000, "not closed"),
    ],
)
def test_unsupported_templates(source: str, message: str) -> None:
    begin = time.process_time()
    with pytest.raises(InvalidImage, match=message):
        render(source, values())
    assert time.process_time() - begin < 2


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "TIME_LIMIT", 0.0)
    with pytest.raises(InvalidImage, match="takes too long"):
        render("{{ 'a'|upper }}", values())


@given(st.text(alphabet="{}%#|:\"'! &a.x\n", max_size=40))
def test_any_source_results_in_text_or_a_clear_error(source: str) -> None:
    try:
        assert isinstance(render(source, values()), str)
    except InvalidImage as error:
        assert str(error)  # noqa: PT017 - either outcome is right


@given(st.text(alphabet=st.characters(exclude_characters="{\r\x00", codec="utf-8")))
def test_text_without_tags_is_unchanged(source: str) -> None:
    assert render(source, values()) == source
