"""Floor 2: expert weights and expert arithmetic. An expert call is a pure function of its rows."""
