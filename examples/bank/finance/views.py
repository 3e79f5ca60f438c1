"""The financial service: takes deposits on the web. POST /USER, with an amount and a note."""

from decimal import Decimal

from bank_events import UserDeposited
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.http import require_POST
from worker.contrib.django import Outbox

from examples.bank.finance.models import Deposit
from worker import App

app = App("finance")
outbox = Outbox(app)


@require_POST
def deposit(request: HttpRequest, user_id: str) -> HttpResponse:
    """Keep the deposit and tell of it: both, or nothing. Who listens is not our business."""
    amount, note = Decimal(request.POST["amount"]), request.POST.get("note", "")
    with transaction.atomic():
        Deposit.objects.create(user_id=user_id, amount=amount, note=note)
        event_id = outbox.publish_on_commit(
            UserDeposited(user_id=user_id, amount=amount, note=note)
        )
    return HttpResponse(event_id, status=202, content_type="text/plain")


urlpatterns = [path("<user_id>", deposit)]
