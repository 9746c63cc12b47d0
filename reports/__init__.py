"""Telling people: scorecard files, HTML, Markdown and JUnit."""
