"""Tests of Utsuwa: `unit` is pure logic, `system` runs the real daemon on the real host."""
