"""Models of how users choose: fitted on logs, checked on users that they have not seen, and made up for stress."""
