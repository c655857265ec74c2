"""What a call cost: prices, usage in provider responses, exact nano-dollars.

``extract_usage`` turns a response into a ``Usage`` (tokens are never lost to
an unknown model), ``PriceBook.price`` turns a ``Usage`` into money or
``None``. genai-prices is imported at the first use of either, not with this
package, and nothing here touches its process-wide state.
"""

from paidonce_models.pricing.own_prices import PriceRow
from paidonce_models.pricing.price_book import PriceBook
from paidonce_models.pricing.rate_card import PricedUsage
from paidonce_models.pricing.usage_from_responses import extract_usage

__all__ = ["PriceBook", "PriceRow", "PricedUsage", "extract_usage"]
