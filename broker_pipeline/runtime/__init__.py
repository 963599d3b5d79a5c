"""The loops of the roles: leader, worker, supervisor; and how they begin and end."""
