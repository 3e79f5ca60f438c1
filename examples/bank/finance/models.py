"""What the financial service keeps of a deposit."""

from decimal import Decimal

from django.core.validators import MinValueValidator
from django.db import models

AT_LEAST_A_CENT = MinValueValidator(Decimal("0.01"))


class Deposit(models.Model):
    user_id = models.CharField(max_length=100)
    amount = models.DecimalField(max_digits=12, decimal_places=2, validators=[AT_LEAST_A_CENT])
    note = models.CharField(max_length=200, blank=True)

    def __str__(self) -> str:
        return f"{self.user_id}: {self.amount}"
