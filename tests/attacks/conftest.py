"""What tests of attacks share."""

from attack_rows import learned
