"""Endurance: faults, hostile input and long load against live servers, and the report of what was survived."""
