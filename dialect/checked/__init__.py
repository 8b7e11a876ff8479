"""Checks that what a rewrite claims to keep is kept: numbers compared, programs made smaller."""
