"""What the financial service keeps of a deposit."""

from django.db import models


class Deposit(models.Model):
    user_id = models.CharField(max_length=100)
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    note = models.CharField(max_length=200, blank=True)

    def __str__(self) -> str:
        return f"{self.user_id}: {self.amount}"
