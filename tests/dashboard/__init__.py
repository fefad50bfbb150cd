"""Tests of the dashboard: who gets in, what is asked and changed, and its pages in a browser."""
