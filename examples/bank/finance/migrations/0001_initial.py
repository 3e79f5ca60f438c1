from decimal import Decimal
from typing import ClassVar

from django.core.validators import MinValueValidator
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations: ClassVar = [
        migrations.CreateModel(
            name="Deposit",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("user_id", models.CharField(max_length=100)),
                (
                    "amount",
                    models.DecimalField(
                        max_digits=12,
                        decimal_places=2,
                        validators=[MinValueValidator(Decimal("0.01"))],
                    ),
                ),
                ("note", models.CharField(max_length=200, blank=True)),
            ],
        )
    ]
