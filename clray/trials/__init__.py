"""Trials: from a sweep file to points, and from points to finished directories."""
