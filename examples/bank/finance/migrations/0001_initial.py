from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations: ClassVar = [
        migrations.CreateModel(
            name="Deposit",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("user_id", models.CharField(max_length=100)),
                ("amount", models.DecimalField(max_digits=12, decimal_places=2)),
                ("note", models.CharField(max_length=200, blank=True)),
            ],
        )
    ]
